// Lights up what a word looked at, and where a look went, while the pointer or the keyboard's focus is on it.
(() => {
  const MANY = 40; // boxes that have no room for a number each

  const levels = (element) => Uint8Array.from(atob(element.dataset.w), (sign) => sign.charCodeAt(0));

  // [picture's number, y0, x0, y1, x1] of each weight.
  function boxesOf(element, count) {
    if (element.dataset.rows) {
      const rows = Number(element.dataset.rows), columns = count / rows;
      const number = [...document.querySelectorAll("#fb-view .fb-picture")].indexOf(element);
      return Array.from({ length: count }, (_, cell) => {
        const y = Math.floor(cell / columns), x = cell % columns;
        return [number, y / rows, x / columns, (y + 1) / rows, (x + 1) / columns];
      });
    }
    return JSON.parse(element.closest("[data-boxes]").dataset.boxes);
  }

  function cellOf([, y0, x0, y1, x1], level, share) {
    const cell = document.createElement("div");
    cell.style.cssText = `top:${100 * y0}%;left:${100 * x0}%;height:${100 * (y1 - y0)}%;width:${100 * (x1 - x0)}%`;
    cell.style.setProperty("--dark", 0.8 * (1 - level / 255));
    if (share) {
      cell.classList.add("fb-numbered");
      cell.textContent = share;
    }
    return cell;
  }

  function lightUp(element) {
    const view = document.getElementById("fb-view");
    const lights = view ? [...view.querySelectorAll(".fb-light")] : [];
    if (!lights.length) return;
    const weights = levels(element), top = Number(element.dataset.top), boxes = boxesOf(element, weights.length);
    const share = (weight) => `${Math.round((100 * top * weight) / 255)} %`;
    const each = boxes.filter(([number]) => number === boxes[0][0]).length;
    let whole = 0;
    boxes.forEach((box, grid) => {
      const [number, y0, x0, y1, x1] = box;
      // The view of a whole picture lies over its parts.
      if (each > 1 && (y1 - y0) * (x1 - x0) > 0.999) whole += weights[grid];
      else lights[number].append(cellOf(box, weights[grid], each <= MANY && lights.length === 1 && share(weights[grid])));
    });
    view.classList.add("fb-lit");
    element.classList.add("fb-on");
    const legend = view.querySelector(".fb-legend");
    legend.dataset.kept ??= legend.innerHTML;
    const what = lights.length > 1 ? "whole pictures" : "the picture as a whole";
    const wholly = share(whole) === "0 %" ? "." : `; ${share(whole)} of its look went to ${what}.`;
    legend.textContent = element.dataset.rows
      ? "Bright is where the model looked."
      : `“${element.textContent}” looked where it is bright${wholly}`;
  }

  function darken() {
    document.querySelectorAll(".fb-on").forEach((element) => element.classList.remove("fb-on"));
    document.querySelectorAll(".fb-light").forEach((light) => light.replaceChildren());
    const view = document.getElementById("fb-view");
    if (!view) return;
    view.classList.remove("fb-lit");
    const legend = view.querySelector(".fb-legend");
    if (legend && legend.dataset.kept !== undefined) {
      legend.innerHTML = legend.dataset.kept;
      delete legend.dataset.kept;
    }
  }

  const marked = (event) => event.target.closest && event.target.closest("[data-w]");
  for (const begins of ["mouseover", "focusin", "click"]) {
    document.addEventListener(begins, (event) => {
      const element = marked(event);
      if (!element || element.classList.contains("fb-on")) return;
      darken();
      lightUp(element);
    });
  }
  for (const ends of ["mouseout", "focusout"]) {
    document.addEventListener(ends, (event) => {
      const element = marked(event);
      if (element && !element.contains(event.relatedTarget)) darken();
    });
  }
})();
