// The page: takes a photo, has the worker look at it, and shows the answer.

import { checkFormat, PictureError, reasonOf, UNDECODABLE, upright } from "./pixels.js";

const element = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
let model;
let ready = false;
let broken = ""; // why the networks cannot run here
let waiting = null; // the photo that came before the networks were there
let latest = 0; // number of the photo that was given last; answers about others are dropped
let shown = null; // its address, to be given back

start();

async function start() {
  say("Loading the networks…");
  worker.onmessage = ({ data }) => heard(data);
  worker.onerror = (event) => {
    event.preventDefault();
    failed(event.message || "its worker does not start");
  };
  try {
    const answer = await fetch("model.json");
    if (!answer.ok) throw new Error(`model.json: the server answers ${answer.status}`);
    model = await answer.json();
  } catch (error) {
    return failed(error.message);
  }
  describe();
  takeFiles();
  takeDrops();
  takeFromCamera();
  element("loading").hidden = false;
  worker.postMessage({ start: model });
}

function heard(message) {
  if ("total" in message) {
    element("progress").value = message.loaded / message.total;
  } else if ("ready" in message) {
    ready = true;
    element("loading").hidden = true;
    document.body.dataset.threads = message.ready;
    if (waiting) look(...waiting);
    else say("Ready for a photo.");
  } else if ("failed" in message) {
    failed(message.failed);
  } else if (message.id === latest) {
    if ("refused" in message) refuse(message.refused);
    else show(message);
  }
}

function failed(reason) {
  broken = `The networks cannot run in this browser: ${reason}`;
  element("loading").hidden = true;
  say("");
  complain(broken);
}

function say(text) {
  element("status").textContent = text;
}

function complain(text) {
  element("problem").textContent = text;
}

// --- photos --------------------------------------------------------------------------------------

function takeFiles() {
  for (const id of ["file", "capture"]) {
    element(id).addEventListener("change", ({ target }) => {
      if (target.files.length) take(target.files[0], target.files[0].name);
      target.value = ""; // so that the same file may be chosen again
    });
  }
}

function takeDrops() {
  // Anywhere: a browser would leave the page for a file that misses the frame.
  const over = (on) => (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", on);
  };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", over(false));
  document.addEventListener("drop", (event) => {
    over(false)(event);
    const [file] = event.dataTransfer.files;
    if (file) take(file, file.name);
    else complain("What was dropped is no file. Save the picture first, and drop its file.");
  });
}

async function take(file, name) {
  complain(broken);
  if (broken) return;
  const id = ++latest;
  waiting = null;
  element("result").hidden = true;
  say(`Looking at ${name}…`);
  try {
    await checkFormat(file, model.formats);
    if (id !== latest) return;
    await display(file);
    checkSize(); // before anything decodes the whole of it
    const standing = await upright(file);
    if (id !== latest) return;
    if (standing !== file) await display(standing);
    file = standing;
  } catch (error) {
    if (id === latest) refuse(reasonOf(error), name);
    if (!(error instanceof PictureError)) throw error; // ours to mend: the console has it, too
    return;
  }
  if (id !== latest) return;
  element("picture").alt = `The photo ${name}`;
  element("caption").textContent = name;
  if (ready) look(file, id);
  else waiting = [file, id];
}

function display(file) {
  const picture = element("picture");
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  return new Promise((resolve, reject) => {
    picture.onload = resolve;
    picture.onerror = () => reject(new PictureError(UNDECODABLE));
    picture.src = shown;
  });
}

function checkSize() {
  const picture = element("picture");
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (width * height > model.max_pixels) {
    picture.removeAttribute("src");
    throw new PictureError(
      `${width}×${height} pixels are more than the ${model.max_pixels / 1e6} million that are ` +
        "decoded; make it smaller first",
    );
  }
}

function look(file, id) {
  waiting = null;
  worker.postMessage({ look: file, id });
}

function refuse(reason, name = element("caption").textContent) {
  say("");
  complain(`${name}: ${reason}`);
}

// --- camera --------------------------------------------------------------------------------------

function takeFromCamera() {
  // Browsers hand out the camera itself to pages from this machine and from https:// only.
  if (!navigator.mediaDevices?.getUserMedia) {
    element("capture-choice").hidden = false;
    return;
  }
  const [open, video] = [element("open-camera"), element("video")];
  open.hidden = false;
  open.addEventListener("click", async () => {
    complain(broken);
    open.hidden = true; // at once: a second camera would never be closed
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: "user", width: { ideal: 1280 } },
      });
    } catch (error) {
      open.hidden = false;
      open.focus();
      return complain(`There is no camera to use (${error.message}). Choose a photo instead.`);
    }
    element("camera").hidden = false;
    element("take").focus();
  });
  const close = () => {
    video.srcObject.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    element("camera").hidden = true;
    open.hidden = false;
    open.focus();
  };
  element("close-camera").addEventListener("click", close);
  element("take").addEventListener("click", () => {
    if (!video.videoWidth) return complain("The camera has shown nothing yet; try again.");
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => take(blob, "camera picture"), "image/png");
    close();
  });
}

// --- answers -------------------------------------------------------------------------------------

const WORDS = { "<30": "under 30", "30-59": "30 to 59", ">=60": "60 or over" };
const words = (value) => WORDS[value] ?? value;
const percent = (share) => `${(100 * share).toFixed(1)} %`;

// The digits of the class: the last attribute counts ones, the others multiples.
function digitsOf(label) {
  const digits = {};
  for (const [name, values] of Object.entries(model.attributes).reverse()) {
    digits[name] = label % values.length;
    label = Math.floor(label / values.length);
  }
  return digits;
}

function show({ label, probabilities, width, height }) {
  const digits = digitsOf(label);
  const answers = element("answers");
  answers.replaceChildren();
  answers.dataset.label = label;
  const spoken = [];
  for (const [name, values] of Object.entries(model.attributes)) {
    const shares = probabilities[name];
    const chosen = digits[name];
    spoken.push(`${name} ${words(values[chosen])}, ${percent(shares[chosen])}`);
    answers.append(group(name, values, shares, chosen));
  }
  element("caption").textContent += `, ${width} × ${height} pixels`;
  element("result").hidden = false;
  say(`Answer: ${spoken.join("; ")}.`);
}

function group(name, values, shares, chosen) {
  const title = name[0].toUpperCase() + name.slice(1);
  const box = make("section", { className: "answer" });
  const heading = make("h3", { id: `answer-${name}`, textContent: `${title}: ${words(values[chosen])}` });
  box.setAttribute("aria-labelledby", heading.id);
  const list = make("ul", {});
  values.forEach((value, place) => {
    const row = make("li", { className: place === chosen ? "chosen" : "" });
    row.dataset.probability = shares[place];
    const track = make("div", { className: "track" });
    track.setAttribute("aria-hidden", "true"); // the number says it
    const bar = make("div", { className: "bar" });
    bar.style.setProperty("--share", percent(shares[place]).replace(" ", ""));
    track.append(bar);
    row.append(
      make("span", { textContent: words(value) }),
      track,
      make("span", { className: "share", textContent: percent(shares[place]) }),
    );
    list.append(row);
  });
  box.append(heading, list);
  const likeliest = shares.indexOf(Math.max(...shares));
  if (likeliest !== chosen) {
    box.append(
      make("p", {
        className: "note",
        textContent:
          `By itself, “${words(values[likeliest])}” is more probable. ` +
          "The answer is the most probable combination of all three.",
      }),
    );
  }
  return box;
}

function describe() {
  for (const [name, value] of model.facts) {
    element("facts").append(
      make("dt", { textContent: name }),
      make("dd", { textContent: value }),
    );
  }
  element("manifest").textContent = JSON.stringify(model.manifest, null, 2);
}

function make(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}
