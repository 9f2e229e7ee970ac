// Whether a question and a picture are like those that a small model was trained on, by what familiar.json says.

import { resize } from "./resize.js";

const SIDE = 64, BILINEAR = 2, ROUNDS = 15;
// Levels in 0..1: a pixel this near to the fitted paper is paper, one this far from it is a stroke, one of this
// saturation is coloured.
const PAPER = 0.04, STROKE = 0.12, COLOURED = 0.3;
const WORD = /[\p{L}\p{N}\p{M}]+/gu;

/** List what is unlike the training in a question, each as a sentence. */
export function doubtsOfQuestion({ words, things, names }, question) {
  const asked = question.toLowerCase().match(WORD) ?? [];
  // Where names may be asked for, any other word can be one.
  const unknown = names ? [] : [...new Set(asked.filter((word) => !words.includes(word)))];
  if (unknown.length) {
    const listed = unknown.slice(0, 3).map((word) => `“${word}”`).join(", ");
    return [`the question has words that this model was not trained on (${listed})`];
  }
  return asked.some((word) => things.includes(word)) ? [] : ["the question asks for nothing that this model was trained on"];
}

/** List what is unlike the training in a picture, each as a sentence. */
export function doubtsOfPicture({ image }, picture) {
  const found = statistics(picture);
  const like = Object.entries(image).every(([name, [low, high]]) => low <= found[name] && found[name] <= high);
  return like ? [] : ["the picture is unlike those that this model was trained on"];
}

/**
 * Shares of the pixels of a small copy of a picture: paper, strokes, and of the strokes those in colour.
 *
 * Paper is a cubic surface for each channel, fitted with the least sum of absolute differences, by least squares that
 * are weighted again and again.
 */
export function statistics(picture) {
  const { data, stride } = resize(picture, SIDE, SIDE, BILINEAR);
  const count = SIDE * SIDE;
  const level = (pixel, channel) => data[pixel * stride + channel] / 255;
  const place = (n) => -1 + (2 * n) / (SIDE - 1);
  const terms = Array.from({ length: count }, (_, pixel) => {
    const y = place(Math.floor(pixel / SIDE)), x = place(pixel % SIDE);
    return [1, y, x, y * x, y ** 3, x ** 3];
  });
  const distance = new Float64Array(count), weights = new Float64Array(count).fill(1);
  for (let round = 0; round < ROUNDS; round++) {
    const surface = fitted(terms, weights, level);
    for (let pixel = 0; pixel < count; pixel++) {
      const apart = [0, 1, 2].map((channel) =>
        Math.abs(level(pixel, channel) - terms[pixel].reduce((sum, term, n) => sum + term * surface[n][channel], 0)),
      );
      distance[pixel] = Math.max(...apart);
      weights[pixel] = 1 / Math.max(distance[pixel], 0.01);
    }
  }
  let paper = 0, strokes = 0, coloured = 0;
  for (let pixel = 0; pixel < count; pixel++) {
    paper += distance[pixel] < PAPER;
    if (distance[pixel] <= STROKE) continue;
    strokes++;
    const levels = [0, 1, 2].map((channel) => level(pixel, channel));
    coloured += Math.max(...levels) - Math.min(...levels) > COLOURED;
  }
  return { paper: paper / count, strokes: strokes / count, colour: strokes ? coloured / strokes : 0 };
}

/** Coefficients [6][3] of the terms, by weighted least squares. */
function fitted(terms, weights, level) {
  const size = terms[0].length;
  const system = Array.from({ length: size }, () => new Float64Array(size + 3));
  terms.forEach((row, pixel) => {
    for (let i = 0; i < size; i++) {
      const weighed = row[i] * weights[pixel];
      for (let j = 0; j < size; j++) system[i][j] += weighed * row[j];
      for (let channel = 0; channel < 3; channel++) system[i][size + channel] += weighed * level(pixel, channel);
    }
  });
  return solved(system, size);
}

/** Solve A x = b for the rows [A | b], by elimination with the largest pivot of each column. */
function solved(system, size) {
  for (let column = 0; column < size; column++) {
    let best = column;
    for (let row = column + 1; row < size; row++) {
      if (Math.abs(system[row][column]) > Math.abs(system[best][column])) best = row;
    }
    [system[column], system[best]] = [system[best], system[column]];
    for (let row = 0; row < size; row++) {
      if (row === column) continue;
      const factor = system[row][column] / system[column][column];
      for (let n = column; n < size + 3; n++) system[row][n] -= factor * system[column][n];
    }
  }
  return system.map((row, n) => Array.from(row.subarray(size), (value) => value / row[n]));
}
