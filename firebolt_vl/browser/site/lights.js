// Where a word looked: the picture stays bright there, with each part's share, and a sentence says it in words.

const DARKEST = 0.8;
const MOST_NUMBERED = 40;
const WHOLE = 0.999;
// Of the largest share: a sentence names what has nearly as much.
const NEARLY = 0.8, MOST_NAMED = 2;

const area = ([y0, x0, y1, x1]) => (y1 - y0) * (x1 - x0);

/** The weights of a whole look: that of the picture as a whole apart, where there are parts too. */
function parted(weights, boxes) {
  const parts = [];
  let whole = 0;
  boxes.forEach((box, n) => {
    if (boxes.length > 1 && area(box) > WHOLE) whole += weights[n];
    else parts.push({ box, weight: weights[n] });
  });
  return { parts, whole };
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

function placeOf([y0, x0, y1, x1]) {
  const third = (middle, names) => names[middle < 0.4 ? 0 : middle > 0.6 ? 2 : 1];
  const name = `${third((y0 + y1) / 2, ["top ", "", "bottom "])}${third((x0 + x1) / 2, ["left", "", "right"])}`.trim();
  return name ? `the ${name}` : "the middle";
}

/** Say where a word looked. */
export function sentence(word, weights, boxes) {
  const { parts, whole } = parted(weights, boxes);
  const shares = new Map();
  for (const { box, weight } of parts) shares.set(placeOf(box), (shares.get(placeOf(box)) ?? 0) + weight);
  const ordered = [...shares].sort(([, one], [, other]) => other - one);
  const near = ordered.filter(([, share]) => share > NEARLY * ordered[0][1]).slice(0, MOST_NAMED);
  const places = near.map(([place, share]) => `${place} (${percent(share)})`).join(" and ");
  const wholly = whole >= 0.005 ? `; ${percent(whole)} went to the picture as a whole` : "";
  return `“${word.trim() || "␣"}” looked most at ${places}${wholly}.`;
}

/** Darken an element that lies over the picture, except where a word looked. */
export function lightUp(over, weights, boxes) {
  const { parts } = parted(weights, boxes);
  const top = Math.max(1e-9, ...weights);
  over.replaceChildren(
    ...parts.map(({ box: [y0, x0, y1, x1], weight }) => {
      const cell = document.createElement("div");
      const sides = { top: y0, left: x0, height: y1 - y0, width: x1 - x0 };
      for (const [side, part] of Object.entries(sides)) cell.style.setProperty(side, `${100 * part}%`);
      cell.style.setProperty("--dark", (DARKEST * (1 - weight / top)).toFixed(4));
      if (parts.length <= MOST_NUMBERED) cell.textContent = percent(weight);
      return cell;
    }),
  );
}
