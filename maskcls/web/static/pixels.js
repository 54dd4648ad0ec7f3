// A picture file → upright RGB pixels, as maskcls/images.py reads them, with the browser's decoders.

export class PictureError extends Error {}

const STRIP_PIXELS = 1 << 20; // so much is copied at once: phones limit the area of a canvas

// What the file is, told by its content. Browsers decode more formats than the networks' training.
export function formatOf(start) {
  const text = String.fromCharCode(...start);
  if (text.startsWith("\xff\xd8\xff")) return "JPEG";
  if (text.startsWith("\x89PNG\r\n\x1a\n")) return "PNG";
  if (text.startsWith("BM")) return "BMP";
  if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return "WEBP";
  if (/^P[1-7f]\s/i.test(text)) return "PPM";
  return null;
}

// Raises PictureError for a file that is none of the formats, before anything decodes it.
export async function checkFormat(file, formats) {
  if (file.size === 0) throw new PictureError("the file is empty");
  let start;
  try {
    start = new Uint8Array(await file.slice(0, 16).arrayBuffer());
  } catch (error) { // a folder, or a file that has gone
    throw new PictureError("it cannot be read: a folder, or a file that has gone");
  }
  const format = formatOf(start);
  if (format === null || !formats.includes(format)) {
    throw new PictureError(`not a picture in a known format (${formats.join(", ")})`);
  }
  if (format === "PPM") {
    throw new PictureError("a PPM picture, which browsers cannot show; save it as PNG");
  }
}

// Blob → {width, height, data: Uint8Array of height × width × 3}.
export async function readPixels(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none", // the pixels as they are stored; Python ignores profiles, too
      premultiplyAlpha: "none",
    });
  } catch (error) {
    throw new PictureError("it cannot be decoded: damaged, or of a kind that this browser lacks");
  }
  try {
    return copyPixels(bitmap);
  } finally {
    bitmap.close();
  }
}

function copyPixels(bitmap) {
  const { width, height } = bitmap;
  const rows = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const canvas = new OffscreenCanvas(width, rows);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  if (context === null) throw new PictureError("this browser has no memory for it");
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
