// A picture file → upright RGB pixels, as maskcls/images.py reads them, with the browser's decoders.

export class PictureError extends Error {}

export const UNDECODABLE = "it cannot be decoded: damaged, or of a kind that this browser lacks";
export const NO_MEMORY = "this browser has no memory for it";

const STRIP_PIXELS = 1 << 20; // so much is copied at once: phones limit the area of a canvas

// What to tell people of anything that went wrong with a picture.
export function reasonOf(error) {
  if (error instanceof RangeError) return NO_MEMORY; // an array that is too large
  return String(error?.message ?? error).slice(0, 300);
}

// What the file is, told by its content. Browsers decode more formats than the networks' training.
async function formatOf(file) {
  const text = String.fromCharCode(...new Uint8Array(await read(file.slice(0, 16))));
  if (text.startsWith("\xff\xd8\xff")) return "JPEG";
  if (text.startsWith("\x89PNG\r\n\x1a\n")) return "PNG";
  if (text.startsWith("BM")) return "BMP";
  if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return "WEBP";
  return null;
}

async function read(blob) {
  try {
    return await blob.arrayBuffer();
  } catch (error) {
    throw new PictureError("it cannot be read: a folder, or a file that has gone");
  }
}

// Raises PictureError for a file that is none of the formats, before anything decodes it.
export async function checkFormat(file, formats) {
  if (file.size === 0) throw new PictureError("the file is empty");
  if (!formats.includes(await formatOf(file))) {
    throw new PictureError(`not a picture in a known format (${formats.join(", ")})`);
  }
}

// The file itself; of a WebP that lies on its side, a PNG that stands. Browsers turn the others by
// themselves. Raises PictureError.
export async function upright(file) {
  if (await formatOf(file) !== "WEBP") return file;
  const turn = TURNS[orientationOf(new DataView(await read(file)))];
  if (turn === undefined) return file;
  const bitmap = await decode(file, "none");
  try {
    const { width, height } = bitmap;
    const swaps = turn[0] === 0; // the picture's rows become columns
    const canvas = new OffscreenCanvas(swaps ? height : width, swaps ? width : height);
    const context = canvas.getContext("2d");
    if (context === null) throw new PictureError(NO_MEMORY);
    const [a, b, c, d] = turn;
    // What ends up left of the canvas, or above it, is moved in.
    context.setTransform(a, b, c, d, a + c < 0 ? canvas.width : 0, b + d < 0 ? canvas.height : 0);
    context.drawImage(bitmap, 0, 0);
    return await canvas.convertToBlob({ type: "image/png" });
  } finally {
    bitmap.close();
  }
}

// EXIF orientation → what turns the picture upright: the matrix a, b, c, d of a canvas.
const TURNS = {
  2: [-1, 0, 0, 1], 3: [-1, 0, 0, -1], 4: [1, 0, 0, -1],
  5: [0, 1, 1, 0], 6: [0, 1, -1, 0], 7: [0, -1, -1, 0], 8: [0, -1, 1, 0],
};

// The EXIF orientation in a WebP file; 1, upright, where it says none.
function orientationOf(webp) {
  try {
    for (let at = 12; at + 8 <= webp.byteLength; ) { // RIFF: name, size, content, even length
      const size = webp.getUint32(at + 4, true);
      if (webp.getUint32(at) === 0x45584946) { // EXIF
        return orientationIn(new DataView(webp.buffer, at + 8, size));
      }
      at += 8 + size + (size % 2);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // an offset beyond the end: damaged
  }
  return 1;
}

function orientationIn(exif) {
  // Some writers put JPEG's introduction before the TIFF header.
  const tiff = exif.getUint32(0) === 0x45786966 ? 6 : 0; // Exif
  const little = exif.getUint16(tiff) === 0x4949; // II
  const table = tiff + exif.getUint32(tiff + 4, little);
  for (let left = exif.getUint16(table, little), at = table + 2; left > 0; left -= 1, at += 12) {
    if (exif.getUint16(at, little) === 0x0112) return exif.getUint16(at + 8, little);
  }
  return 1;
}

// Blob → {width, height, data: Uint8Array of height × width × 3}.
export async function readPixels(file) {
  const bitmap = await decode(file, "from-image");
  try {
    return copyPixels(bitmap);
  } finally {
    bitmap.close();
  }
}

async function decode(file, imageOrientation) {
  try {
    return await createImageBitmap(file, {
      imageOrientation,
      colorSpaceConversion: "none", // the pixels as they are stored; Python ignores profiles, too
      premultiplyAlpha: "none",
    });
  } catch (error) {
    throw new PictureError(UNDECODABLE);
  }
}

function copyPixels(bitmap) {
  const { width, height } = bitmap;
  const rows = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const canvas = new OffscreenCanvas(width, rows);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  if (context === null) throw new PictureError(NO_MEMORY);
  const data = new Uint8Array(width * height * 3);
  let to = 0;
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.fillStyle = "#fff"; // what is transparent is white, as in Python
    context.fillRect(0, 0, width, count);
    context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    const strip = context.getImageData(0, 0, width, count).data;
    for (let from = 0; from < strip.length; from += 4) {
      data[to++] = strip[from];
      data[to++] = strip[from + 1];
      data[to++] = strip[from + 2];
    }
  }
  return { width, height, data };
}
