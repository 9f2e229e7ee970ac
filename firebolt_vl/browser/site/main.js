// The page: a picture, questions about it, answers as they come, and what each word looked at.

import { lightUp, sentence } from "./lights.js";
import { openPicture, PictureError } from "./picture.js";
import { moveWithArrows, Turn } from "./turn.js";

const LONGEST_ANSWER = 128;
const HINT = "Point at a word, or move to it with Tab and the arrow keys, and the picture shows where it looked.";
const byId = (id) => document.getElementById(id);
const looks = new WeakMap();
let worker, ready = false, shown = null, fresh = false, opening = 0, turn = null, number = 0;
let ended = Promise.resolve(), end = () => {}; // of the answer that is being made

function status(text) {
  byId("status").textContent = text;
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function refresh() {
  byId("go").disabled = !ready || turn !== null;
  byId("stop").hidden = turn === null;
}

/** Show a file, or what a promise of one becomes. Resolves to whether it is shown, and no other came meanwhile. */
async function show(file) {
  const mine = ++opening;
  notice("");
  stop();
  try {
    const opened = await openPicture(await file);
    if (mine !== opening) {
      URL.revokeObjectURL(opened.url);
      return false;
    }
    if (shown) URL.revokeObjectURL(shown.url);
    [shown, fresh] = [opened, true];
    byId("picture").src = opened.url;
    byId("picture").alt = `The picture that is asked about: ${opened.name}`;
    byId("empty").hidden = true;
    byId("frame").hidden = false;
    byId("drop").classList.add("filled");
    byId("said").replaceChildren();
    darken();
    await ended;
    return mine === opening;
  } catch (error) {
    if (mine === opening) {
      notice(error instanceof PictureError ? error.message : `the picture cannot be opened: ${error.message}`);
    }
    return false;
  }
}

async function fetched(picture) {
  const response = await fetch(picture).catch(() => null);
  if (!response?.ok) throw new PictureError(`${picture} is not there; copy the whole folder again`);
  return new File([await response.blob()], picture.split("/").at(-1));
}

function ask(question) {
  notice("");
  if (!ready || turn) return;
  if (!shown) return notice("there is no picture yet; choose one, or take an example");
  if (!question.trim()) return notice("the question is empty; write one first");
  turn = new Turn(question, looks);
  ended = new Promise((resolve) => (end = resolve));
  byId("said").prepend(turn.box);
  const picture = fresh ? shown.picture : null;
  fresh = false;
  shown.picture = null; // it goes to the worker, which keeps what it saw
  worker.postMessage({ do: "answer", number: ++number, question, most: LONGEST_ANSWER, picture }, picture ? [picture.data.buffer] : []);
  refresh();
}

function stop() {
  if (turn) worker.postMessage({ do: "stop" });
}

function hear({ data }) {
  const mine = data.number === number;
  if (data.say === "loading") {
    Object.assign(byId("progress"), { hidden: false, max: data.total, value: data.done });
    const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1);
    status(`Loading the model: ${megabytes(data.done)} of ${megabytes(data.total)} MB`);
  } else if (data.say === "ready") {
    ready = true;
    status("");
    byId("progress").hidden = true;
    byId("legend").textContent = HINT;
    refresh();
  } else if (data.say === "looked" && mine) turn?.looked(data);
  else if (data.say === "told" && mine) {
    turn?.told(data);
    if (data.answer) finish();
  } else if (data.say === "stopped" && mine) {
    turn?.ended("stopped");
    finish();
  } else if (data.say === "failed") fail(data);
}

function finish() {
  turn = null;
  end();
  refresh();
}

function fail({ text, refused }) {
  if (!ready) return broken(`The model cannot be loaded: ${text}.`);
  turn?.box.remove();
  finish();
  notice(refused ? text : `the model could not answer: ${text}`);
}

/** Say what keeps the page from working at all. */
function broken(text) {
  ready = false;
  turn?.ended("stopped");
  finish();
  byId("progress").hidden = true;
  status(text);
}

const marked = (event) => event.target.closest?.(".marked");

function light(event) {
  const word = marked(event), look = word && looks.get(word);
  if (!look || word.classList.contains("on")) return;
  darken();
  word.classList.add("on");
  lightUp(byId("light"), look.weights, look.boxes);
  byId("legend").textContent = sentence(word.textContent, look.weights, look.boxes);
}

function darken() {
  document.querySelectorAll(".marked.on").forEach((word) => word.classList.remove("on"));
  byId("light").replaceChildren();
  byId("legend").textContent = ready ? HINT : "";
}

function addExamples(examples) {
  const list = document.createElement("ul");
  for (const { picture, question } of examples) {
    const button = document.createElement("button");
    const image = Object.assign(document.createElement("img"), { src: picture, alt: "" });
    button.append(image, question);
    button.addEventListener("click", async () => {
      byId("question").value = question;
      if (await show(fetched(picture))) ask(question);
    });
    const item = document.createElement("li");
    item.append(button);
    list.append(item);
  }
  byId("examples").append(list);
  byId("examples").hidden = examples.length === 0;
}

function takeFiles(files) {
  if (files.length > 1) notice("these are several files; expected one picture at a time");
  else if (files.length === 1) show(files[0]);
}

function listen() {
  byId("file").addEventListener("change", ({ target }) => {
    takeFiles(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    takeFiles(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => takeFiles(event.clipboardData.files));
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(byId("question").value);
  });
  byId("stop").addEventListener("click", stop);
  for (const begins of ["mouseover", "focusin", "click"]) document.addEventListener(begins, light);
  for (const ends of ["mouseout", "focusout"]) {
    document.addEventListener(ends, (event) => {
      const word = marked(event);
      if (word && !word.contains(event.relatedTarget)) darken();
    });
  }
  byId("said").addEventListener("keydown", moveWithArrows);
}

async function start() {
  listen();
  if (typeof WebAssembly !== "object") {
    return broken("This browser has no WebAssembly, which the model needs (some switch it off for safety); use another one.");
  }
  status("Loading the model");
  const response = await fetch("page.json").catch(() => null);
  if (!response?.ok) return broken("page.json is not there; copy the whole folder again.");
  const page = await response.json();
  const knows = page.familiar ? ` A small model: ${page.familiar.knows}.` : "";
  byId("about").textContent =
    `The model ${page.name} runs in this page: pictures and questions stay on this device.${knows}`;
  addExamples(page.examples);
  worker = new Worker("worker.js", { type: "module" });
  worker.addEventListener("message", hear);
  worker.addEventListener("error", (event) => {
    broken(`The model's thread cannot run (${event.message ?? "its files are not there, or are not sent as JavaScript"}); reload the page.`);
  });
  worker.postMessage({ do: "load", files: page.files, familiar: page.familiar });
}

start();
