// Holds the networks, beside the page, so that the page stays alive while they compute.
//
// in:  {start: model.json}   {look: file, id}
// out: {loaded, total}   {ready: threads}   {failed: reason}
//      {id, width, height, label, probabilities: {mask: [...], ...}}   {id, refused: reason}

import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";
import { readPixels, reasonOf } from "./pixels.js";

const MOST_THREADS = 4; // more of them wait for one another on networks of this size

let session;
let model;

self.onmessage = async ({ data }) => {
  if (data.start) {
    model = data.start;
    try {
      self.postMessage({ ready: await start() });
    } catch (error) {
      self.postMessage({ failed: reasonOf(error) });
    }
  } else {
    try {
      self.postMessage({ id: data.id, ...(await look(data.look)) });
    } catch (error) {
      self.postMessage({ id: data.id, refused: reasonOf(error) });
    }
  }
};

async function start() {
  // Threads need memory that is shared, which browsers allow to isolated pages only.
  const cores = navigator.hardwareConcurrency || 1;
  const threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, cores) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = new URL("onnxruntime-web/", self.location.href).href;
  const content = await download(model.file, model.bytes);
  session = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
  return threads;
}

async function download(name, total) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  const content = new Uint8Array(total);
  let loaded = 0;
  const reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (loaded + part.value.length > total) break;
    content.set(part.value, loaded);
    loaded += part.value.length;
    self.postMessage({ loaded, total });
  }
  if (loaded !== total) throw new Error(`${name}: not the file that model.json describes`);
  return content;
}

async function look(file) {
  const { width, height, data } = await readPixels(file);
  const images = new ort.Tensor("uint8", data, [1, height, width, 3]);
  let answers;
  try {
    answers = await session.run({ images });
  } finally {
    images.dispose();
  }
  const probabilities = {};
  for (const name of Object.keys(model.attributes)) {
    probabilities[name] = Array.from(answers[`${name}_prob`].data);
  }
  return { width, height, label: Number(answers.label.data[0]), probabilities };
}
