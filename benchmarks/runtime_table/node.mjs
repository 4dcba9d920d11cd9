// The calls on stdin, [graph, feeds] each, run by graph.js in onnxruntime-node: places or an error of each, on stdout.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [, , modules, source] = process.argv;
const ort = createRequire(`${modules}/`)("onnxruntime-node");
const run = (0, eval)(readFileSync(source, "utf8"));
const found = [];
for (const [graph, feeds] of JSON.parse(readFileSync(0, "utf8"))) {
  found.push(await run(ort, graph, feeds).catch((error) => String(error)));
}
console.log(`\n${JSON.stringify(found)}`);
