// Views of a picture, as the model's image processor cuts and normalises them in Python.

import { resize, resizeBilinear } from "./resize.js";

const MOST_PIXELS = 2 ** 25, MOST_TILES = 2 ** 14;

/**
 * Cut a picture into a view of the whole and tiles, with the settings that engine.json has.
 *
 * Returns `pixel_values` [1,1,3,S,S], `pixel_tiles` [1,1,M,3,t,t] and `grid_boxes` [1,1,1+M,4] as { data, dims }.
 */
export function cutViews(picture, settings) {
  const { size: side, tile_size: tile, resample } = settings;
  const native = settings.tiling === "native";
  const [rows, columns] = native ? nativeGrid(picture.height, picture.width, tile, settings.max_tiles) : [];
  const whole = native ? planes(resize(picture, side, side, resample)) : null;
  const tiled = native
    ? resize(picture, columns * tile, rows * tile, resample)
    : settings.do_resize ? resize(picture, side, side, resample) : picture;
  const boxes = native ? nativeBoxes(rows, columns, tile) : compatibleBoxes(tiled, tile, settings.tile_overlap);
  const shown = whole ?? resizeBilinear(tiled, side, side);
  const pixels = new Float32Array(boxes.length * 3 * tile * tile);
  boxes.forEach((box, n) => normalise(cut(tiled, box, tile), settings, pixels.subarray(n * 3 * tile * tile)));
  const values = new Float32Array(3 * side * side);
  normalise(shown, settings, values);
  const { width, height } = tiled;
  const relative = boxes.map(([y0, x0, y1, x1]) => [y0 / height, x0 / width, y1 / height, x1 / width]);
  return {
    pixel_values: { data: values, dims: [1, 1, 3, side, side] },
    pixel_tiles: { data: pixels, dims: [1, 1, boxes.length, 3, tile, tile] },
    grid_boxes: { data: Float32Array.from([[0, 0, 1, 1], ...relative].flat()), dims: [1, 1, 1 + boxes.length, 4] },
  };
}

/** Round as Python does: a half to the even number. */
function rounded(x) {
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}

/** Choose [rows, columns] of tiles whose rectangle is nearest to the picture, at most `most` of them. */
export function nativeGrid(height, width, tile, most) {
  const near = [Math.max(1, rounded(height / tile)), Math.max(1, rounded(width / tile))];
  if (near[0] * near[1] <= most) return near;
  const r = Math.sqrt((most * height) / width), c = Math.sqrt((most * width) / height);
  let best = [1, 1], least = [Infinity, Infinity];
  for (let rows = 1; rows <= most; rows++) {
    for (let columns = 1; columns <= Math.floor(most / rows); columns++) {
      const down = Math.log(rows / r), across = Math.log(columns / c);
      const stretch = [down ** 2 + across ** 2, Math.abs(down - across)].map((one) => Number(one.toFixed(9)));
      if (stretch[0] < least[0] || (stretch[0] === least[0] && stretch[1] < least[1])) {
        [best, least] = [[rows, columns], stretch];
      }
    }
  }
  return best;
}

function nativeBoxes(rows, columns, tile) {
  const boxes = [];
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) boxes.push([y * tile, x * tile, (y + 1) * tile, (x + 1) * tile]);
  }
  return boxes;
}

function compatibleBoxes({ width, height }, tile, overlap) {
  const origins = (length) => {
    const count = Math.floor(Math.max(length - tile, 0) / (tile - overlap)) + 1;
    return Array.from({ length: count }, (_, n) => n * (tile - overlap));
  };
  const rows = origins(height), columns = origins(width), count = rows.length * columns.length;
  if (count > MOST_TILES || count * tile ** 2 > MOST_PIXELS) {
    throw new Error(`the picture makes ${count} tiles; expected at most ${MOST_TILES}; take a smaller picture`);
  }
  return rows.flatMap((y) => columns.map((x) => [y, x, Math.min(y + tile, height), Math.min(x + tile, width)]));
}

/** The levels of a picture as [red, green, blue], each [height * width]. */
function planes({ width, height, stride, data }) {
  return [0, 1, 2].map((channel) => {
    const out = new Uint8Array(width * height);
    for (let n = 0; n < out.length; n++) out[n] = data[n * stride + channel];
    return out;
  });
}

/** Cut a box out of a picture, as planes; one that is smaller than a tile repeats its last row and column. */
function cut({ width, stride, data }, [y0, x0, y1, x1], tile) {
  return [0, 1, 2].map((channel) => {
    const out = new Uint8Array(tile * tile);
    for (let y = 0; y < tile; y++) {
      const row = Math.min(y0 + y, y1 - 1) * width;
      for (let x = 0; x < tile; x++) out[y * tile + x] = data[(row + Math.min(x0 + x, x1 - 1)) * stride + channel];
    }
    return out;
  });
}

/** Write (levels * rescale_factor - mean) / std to `out`, as one multiply and one subtract in float32. */
function normalise(planes, settings, out) {
  const factor = settings.do_rescale ? settings.rescale_factor : 1;
  const each = (value, otherwise) =>
    settings.do_normalize ? [0, 1, 2].map((n) => (Array.isArray(value) ? value[n % value.length] : value)) : Array(3).fill(otherwise);
  const means = each(settings.image_mean, 0), stds = each(settings.image_std, 1);
  planes.forEach((levels, channel) => {
    const scale = Math.fround(factor / stds[channel]), shift = Math.fround(means[channel] / stds[channel]);
    const start = channel * levels.length;
    for (let n = 0; n < levels.length; n++) out[start + n] = Math.fround(levels[n] * scale) - shift;
  });
}
