// Runs the page's own modules without a browser: `node page_in_node.mjs SITE JOBS RESULTS`, both files JSON.
//
// A job is { picture, ... } with { width, height, data } in base64, or { text }, { ids }, { question }; what comes back is in
// the order of the jobs. Views come back as base64 of their float32.

import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [site, jobs, results] = process.argv.slice(2);
const module = (name) => import(pathToFileURL(path.join(site, name)));
const { resize } = await module("resize.js");
const { cutViews, nativeGrid } = await module("views.js");
const { Tokenizer } = await module("tokenizer.js");
const { wordSpans } = await module("words.js");
const { doubtsOfPicture, doubtsOfQuestion, statistics } = await module("familiar.js");

const asked = JSON.parse(fs.readFileSync(jobs, "utf8"));
const tokenizer = new Tokenizer(asked.tokenizer);
const base64 = ({ buffer, byteOffset, byteLength }) => Buffer.from(buffer, byteOffset, byteLength).toString("base64");
const picture = ({ width, height, data }) => ({ width, height, stride: 3, data: new Uint8Array(Buffer.from(data, "base64")) });

const of = {
  resize: (job) => base64(resize(picture(job.picture), job.width, job.height, job.resample).data),
  views: (job) =>
    Object.fromEntries(
      Object.entries(cutViews(picture(job.picture), job.settings)).map(([name, { data, dims }]) => [name, { dims, data: base64(data) }]),
    ),
  grids: (job) => job.sizes.map(([height, width, tile, most]) => nativeGrid(height, width, tile, most)),
  encode: (job) => job.texts.map((text) => tokenizer.encode(text, job.special).map(({ id, start, end }) => [id, start, end])),
  decode: (job) => job.rows.map((ids) => tokenizer.decode(ids)),
  words: (job) => job.texts.map(wordSpans),
  doubts: (job) => job.texts.map((text) => doubtsOfQuestion(job.familiar, text).length),
  statistics: (job) => ({ ...statistics(picture(job.picture)), doubts: doubtsOfPicture(job.familiar, picture(job.picture)).length }),
};
fs.writeFileSync(results, JSON.stringify(asked.jobs.map((job) => of[job.do](job))));
