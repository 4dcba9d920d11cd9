// Runs pipelines of Transformers.js on bundles: a JSON list of calls on stdin, a JSON list of what they gave on stdout.
import { env, pipeline } from "@huggingface/transformers";
import { readFileSync } from "node:fs";

const calls = JSON.parse(readFileSync(0, "utf8"));
const given = [];
for (const { folder, task, dtype, texts, options } of calls) {
  Object.assign(env, { localModelPath: folder.replace(/[^/]*$/, ""), allowRemoteModels: false, cacheDir: null, useFSCache: false });
  try {
    const run = await pipeline(task, folder.replace(/^.*[/]/, ""), dtype ? { dtype } : {});
    given.push({ given: await run(texts, options ?? {}), dtype: run.model.sessions.model.config.dtype });
  } catch (error) {
    given.push({ error: String(error) });
  }
}
console.log(`\n${JSON.stringify(given)}`);
