// The model in a thread of its own: the page stays alive while it computes.

import { doubtsOfPicture, doubtsOfQuestion } from "./familiar.js";
import { Model, Refusal } from "./model.js";
import * as ort from "./runtime/onnxruntime.js";

const STOPPED = "stopped";
let model, familiar, unseen, seen, asked = 0;

/** Read the files, telling how far it is; returns name -> Uint8Array. */
async function readFiles(sizes) {
  const total = Object.values(sizes).reduce((sum, size) => sum + size, 0);
  const files = new Map();
  let done = 0;
  for (const [name, size] of Object.entries(sizes)) {
    const response = await fetch(name).catch(() => null);
    if (!response?.ok) throw new Error(`${name} is not there (${response?.status ?? "no answer"}); copy the whole folder again`);
    const bytes = new Uint8Array(size);
    let filled = 0;
    for (const reader = response.body.getReader(); ; ) {
      const { done: over, value } = await reader.read();
      if (over) break;
      if (filled + value.length <= size) bytes.set(value, filled);
      filled += value.length;
      postMessage({ say: "loading", done: done + Math.min(filled, size), total });
    }
    if (filled !== size) throw new Error(`${name} has ${filled} bytes; expected ${size}; copy the whole folder again`);
    done += size;
    files.set(name, bytes);
  }
  return files;
}

async function load({ files: sizes, familiar: known }) {
  const files = await readFiles(sizes);
  const json = (name) => JSON.parse(new TextDecoder().decode(files.get(name)));
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  ort.env.wasm.wasmBinary = files.get("runtime/onnxruntime.wasm");
  ort.env.logLevel = "error";
  const inModel = [...files].filter(([name]) => name.startsWith("model/")).map(([name, bytes]) => [name.slice(6), bytes]);
  const graphs = new Map(inModel.filter(([name]) => !name.endsWith(".json")));
  model = await Model.open(ort, json("model/engine.json"), json("model/tokenizer.json"), graphs);
  familiar = known;
  postMessage({ say: "ready" });
}

async function answer({ picture, question, most, number }) {
  if (picture) [unseen, seen] = [picture, null];
  if (unseen) {
    const looked = await model.look(unseen);
    seen = { ...looked, doubts: familiar ? doubtsOfPicture(familiar, unseen) : [] };
    unseen = null;
  }
  const doubts = familiar ? [...doubtsOfQuestion(familiar, question), ...seen.doubts] : [];
  postMessage({ say: "looked", number, boxes: seen.boxes, doubts });
  for await (const told of model.answer(seen, question, most)) {
    postMessage({ say: "told", number, ...told });
    await nextTask(); // in which a stop may come
    if (asked !== number) throw STOPPED;
  }
}

const channel = new MessageChannel();

function nextTask() {
  return new Promise((resolve) => {
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
  });
}

onmessage = async ({ data }) => {
  if (data.do === "stop") {
    asked = 0;
    return;
  }
  try {
    if (data.do === "load") await load(data);
    else {
      asked = data.number;
      await answer(data);
    }
  } catch (error) {
    if (error === STOPPED) postMessage({ say: "stopped", number: data.number });
    else postMessage({ say: "failed", number: data.number, refused: error instanceof Refusal, text: String(error?.message ?? error) });
  }
};
