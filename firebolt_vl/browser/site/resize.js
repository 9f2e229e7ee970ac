// Resizing of 8-bit pictures as Pillow 13 does it, to the bit: the same filters, weights in 22-bit fixed point, one pass
// for each axis. A canvas would do it otherwise in each browser.
//
// A picture is { width, height, stride, data }: `stride` bytes for each pixel, of which the first three are its levels.

const BITS = 22;
const NEAREST = 0;

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

function hamming(x) {
  const angle = x * Math.PI;
  return x === 0 ? 1 : x >= 1 ? 0 : (Math.sin(angle) / angle) * (0.54 + 0.46 * Math.cos(angle));
}

function bicubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// Pillow's number of a filter -> how far it reaches, and its height at a distance.
const FILTERS = {
  1: { reach: 3, height: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) }, // Lanczos
  2: { reach: 1, height: (x) => Math.max(0, 1 - Math.abs(x)) }, // bilinear
  3: { reach: 2, height: (x) => bicubic(Math.abs(x)) },
  4: { reach: 0.5, height: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) }, // box
  5: { reach: 1, height: (x) => hamming(Math.abs(x)) },
};

/** Return a picture of another size, as Pillow's `Image.resize` makes it with the filter of that number. */
export function resize(picture, width, height, resample) {
  if (resample === NEAREST) return nearest(picture, width, height);
  const filter = FILTERS[resample];
  if (!filter) throw new Error(`the model's resample is ${resample}; expected one of Pillow's filters, 0 to 5`);
  const passes = [
    (one) => (width === one.width ? one : across(one, width, filter)),
    (one) => (height === one.height ? one : down(one, height, filter)),
  ];
  // Between the passes levels are rounded, so that their order tells: down first where that leaves much less to do.
  // Before Pillow 13 it was never first.
  const fewer = picture.height - height;
  if (fewer > 0 && fewer > 2 * (picture.width - width)) passes.reverse();
  return passes.reduce((one, pass) => pass(one), picture);
}

/** For each of `length` samples the first of the pixels 0..`from` - 1 that it is made of, and their weights. */
function taps(from, length, { reach, height }) {
  const scale = from / length, widened = Math.max(scale, 1), support = reach * widened;
  return Array.from({ length }, (_, sample) => {
    const centre = (sample + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const heights = Array.from({ length: end - first }, (_, x) => height((x + first - centre + 0.5) * (1 / widened)));
    const sum = heights.reduce((sum, height) => sum + height, 0);
    const weights = heights.map((height) => (sum === 0 ? height : height / sum));
    return { first, weights: weights.map((weight) => Math.trunc(weight * 2 ** BITS + (weight < 0 ? -0.5 : 0.5))) };
  });
}

function level(sum) {
  return Math.min(255, Math.max(0, sum >> BITS));
}

function across({ width: from, height, stride, data }, width, filter) {
  const out = new Uint8Array(3 * width * height);
  taps(from, width, filter).forEach(({ first, weights }, x) => {
    for (let y = 0; y < height; y++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (BITS - 1), at = (y * from + first) * stride + channel;
        for (let tap = 0; tap < weights.length; tap++, at += stride) sum += data[at] * weights[tap];
        out[3 * (y * width + x) + channel] = level(sum);
      }
    }
  });
  return { width, height, stride: 3, data: out };
}

function down({ width, height: from, stride, data }, height, filter) {
  const out = new Uint8Array(3 * width * height);
  taps(from, height, filter).forEach(({ first, weights }, y) => {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (BITS - 1), at = (first * width + x) * stride + channel;
        for (let tap = 0; tap < weights.length; tap++, at += stride * width) sum += data[at] * weights[tap];
        out[3 * (y * width + x) + channel] = level(sum);
      }
    }
  });
  return { width, height, stride: 3, data: out };
}

function nearest({ width: fromWidth, height: fromHeight, stride, data }, width, height) {
  const out = new Uint8Array(3 * width * height);
  const columns = nearestOf(fromWidth, width);
  nearestOf(fromHeight, height).forEach((above, y) =>
    columns.forEach((left, x) => {
      const at = (above * fromWidth + left) * stride;
      out.set(data.subarray(at, at + 3), 3 * (y * width + x));
    }),
  );
  return { width, height, stride: 3, data: out };
}

function nearestOf(from, length) {
  const scale = from / length;
  let position = scale * 0.5; // summed up, not multiplied: as Pillow rounds
  return Array.from({ length }, () => {
    const found = Math.min(Math.trunc(position), from - 1);
    position += scale;
    return found;
  });
}

/** Resize as the original's global view is: bilinear without antialiasing, in float64; [3][height * width]. */
export function resizeBilinear({ width: fromWidth, height: fromHeight, stride, data }, width, height) {
  const rows = neighbours(fromHeight, height), columns = neighbours(fromWidth, width);
  return [0, 1, 2].map((channel) => {
    const out = new Float32Array(width * height);
    const at = (y, x) => data[(y * fromWidth + x) * stride + channel];
    rows.forEach(([above, below, down], y) =>
      columns.forEach(([left, right, across], x) => {
        const start = at(above, left) * (1 - down) + at(below, left) * down;
        const end = at(above, right) * (1 - down) + at(below, right) * down;
        out[y * width + x] = start * (1 - across) + end * across;
      }),
    );
    return out;
  });
}

function neighbours(length, samples) {
  return Array.from({ length: samples }, (_, sample) => {
    const position = Math.min(Math.max((sample + 0.5) * (length / samples) - 0.5, 0), length - 1);
    const before = Math.floor(position);
    return [before, Math.min(before + 1, length - 1), position - before];
  });
}
