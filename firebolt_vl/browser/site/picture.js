// A file as a picture: 8-bit levels, upright, what is transparent over white; or an error that says what to do.

export const MOST_BYTES = 32 * 2 ** 20;
export const MOST_PIXELS = 40e6;
const LONGEST_SIDE = 16384;
// Of a canvas at a time: Safari on phones has none larger than 16 million.
const STRIP = 4e6;

/** What is wrong with a file, in words for whoever chose it. */
export class PictureError extends Error {}

/**
 * Open an image file. Returns { name, url, picture }: `url` shows it and is to be revoked, `picture` is what resize.js
 * takes. Nothing of it is decoded before its size is known.
 */
export async function openPicture(file) {
  const name = file.name || "the picture";
  if (file.size > MOST_BYTES) {
    const megabytes = Math.round(file.size / 2 ** 20);
    throw new PictureError(`${name} has ${megabytes} MB; expected at most ${MOST_BYTES / 2 ** 20} MB; save it smaller`);
  }
  const url = URL.createObjectURL(file);
  try {
    const { width, height } = await sizeOf(url, name);
    if (width * height > MOST_PIXELS || Math.max(width, height) > LONGEST_SIDE) {
      throw new PictureError(
        `${name} has ${width} × ${height} pixels; expected at most ${MOST_PIXELS / 1e6} million, and ` +
          `${LONGEST_SIDE.toLocaleString("en")} on a side; scale it down`,
      );
    }
    return { name, url, picture: await decoded(file, name) };
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
}

async function sizeOf(url, name) {
  const image = new Image();
  const known = new Promise((resolve, reject) => {
    image.onload = resolve;
    image.onerror = () => reject(noImage(name));
  });
  image.src = url;
  await known;
  return { width: image.naturalWidth, height: image.naturalHeight };
}

function noImage(name) {
  return new PictureError(`${name} is no image that this browser can read; expected a PNG, JPEG, WebP or GIF`);
}

async function decoded(file, name) {
  let bitmap;
  try {
    // The levels as they stand in the file, as Pillow reads them: no colour profile is applied.
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw noImage(name);
  }
  try {
    return levelsOf(bitmap);
  } finally {
    bitmap.close();
  }
}

function levelsOf(bitmap) {
  const { width, height } = bitmap;
  const rows = Math.min(height, Math.max(1, Math.floor(STRIP / width)));
  const canvas = new OffscreenCanvas(Math.max(width, PROBE), Math.max(rows, PROBE));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new PictureError("this browser has no room for the picture; scale it down");
  checkHonest(context);
  const data = new Uint8Array(4 * width * height);
  for (let y = 0; y < height; y += rows) {
    const strip = Math.min(rows, height - y);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, strip);
    context.drawImage(bitmap, 0, y, width, strip, 0, 0, width, strip);
    data.set(context.getImageData(0, 0, width, strip).data, 4 * y * width);
  }
  return { width, height, stride: 4, data };
}

const PROBE = 16;

/** Throw where the browser changes what a page reads from a canvas, which some do against fingerprinting. */
function checkHonest(context) {
  const written = new ImageData(PROBE, PROBE);
  written.data.forEach((_, n) => (written.data[n] = n % 4 === 3 ? 255 : (n * 37) % 256));
  context.putImageData(written, 0, 0);
  const read = context.getImageData(0, 0, PROBE, PROBE).data;
  if (written.data.some((level, n) => level !== read[n])) {
    throw new PictureError(
      "this browser hides pictures from pages (a protection against fingerprinting), so that the model would see " +
        "noise; allow this page to read canvases, or use another browser",
    );
  }
}
