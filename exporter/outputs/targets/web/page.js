// What the model is, as the export wrote it. Texts go into the page as text, never as HTML.
const about = JSON.parse(document.getElementById("model").textContent);
const at = (id) => document.getElementById(id);
const folder = new URL(".", location.href);
const MOST_TOKENS = 20; // that a text goes on for
const MOST_ROWS = 5;

// A file of the runtime: out of vendor/ beside the page, else from where it is published. Both are held to one hash.
async function fetchRuntime(file) {
  const choices = [new URL(`vendor/${file.name}`, folder), new URL(file.url)];
  for (const url of choices) {
    try {
      const response = await fetch(url, { integrity: file.integrity, credentials: "omit" });
      if (response.ok) return { bytes: await response.arrayBuffer(), host: url.host };
    } catch { /* not there, another version, or no network: the next one */ }
  }
  throw new Error(`the runtime's ${file.name} is neither in vendor/ beside this page nor at ${choices[1].host}`);
}

const importScript = ({ bytes }) => import(URL.createObjectURL(new Blob([bytes], { type: "text/javascript" })));

async function fetchOwn(name, read) {
  const response = await fetch(new URL(name, folder));
  if (!response.ok) throw new Error(`${name} is not beside this page (${response.status})`);
  return response[read]();
}

async function load() {
  if (location.protocol === "file:") throw new Error("a page from the disk may read no model: serve this folder, as by python -m http.server, and open the page there");
  const [script, wasm, tokens] = await Promise.all(about.runtime.map(fetchRuntime));
  at("runtime").textContent = `${about.runtimeName}, from ${script.host === location.host ? "vendor/ on this server" : script.host}`;
  const [ort, { Tokenizer }] = await Promise.all([importScript(script), importScript(tokens)]);
  ort.env.wasm.wasmBinary = wasm.bytes;
  ort.env.wasm.numThreads = 1; // a model of this size is not worth the threads
  const [json, settings, graph] = await Promise.all([
    fetchOwn("tokenizer.json", "json"), fetchOwn("tokenizer_config.json", "json"), fetchOwn(about.graph, "arrayBuffer"),
  ]);
  const weights = await Promise.all(about.weights.map(async (name) => (
    { path: name.split("/").at(-1), data: await fetchOwn(name, "arrayBuffer") }
  )));
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData: weights });
  return { ort, session, tokenizer: new Tokenizer(json, settings) };
}

// One call: what it gives by name. `past` has keys and values of the calls before, of all but the last `fresh` ids.
async function call({ ort, session }, ids, fresh, past) {
  const some = ids.slice(-fresh);
  const long = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const feeds = { input_ids: long(some), attention_mask: long(ids.map(() => 1)) };
  for (const [name, heads, width] of about.past) {
    feeds[name] = past?.[name.replace("past_key_values", "present")]
      ?? new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
  }
  return session.run(feeds);
}

const findFalse = (outputs) => Object.keys(about.guards).find((name) => name in outputs && !outputs[name].data[0]);

// Probabilities at the last position, or of the classes.
function rank(logits) {
  const last = logits.data.slice(-logits.dims.at(-1));
  const most = last.reduce((a, b) => Math.max(a, b));
  const weights = Array.from(last, (value) => Math.exp(value - most));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight, index) => ({ index, share: weight / total })).sort((a, b) => b.share - a.share);
}

// The text after the answer, while the model keeps a past and knows the tokens.
async function goOn(model, prompt, first, outputs) {
  const ids = [...prompt, first];
  while (ids.length < about.longest + 1 && ids.length < prompt.length + MOST_TOKENS && !about.stopIds.includes(ids.at(-1))) {
    outputs = await call(model, ids, 1, outputs);
    if (findFalse(outputs)) break;
    ids.push(rank(outputs.logits)[0].index);
  }
  return ids.slice(prompt.length);
}

const name = (model, index) => about.labels[index] ?? model.tokenizer.decode([index]);

// A share in percent; what is neither 0 nor 1 is not rounded to them.
function write(share) {
  const percent = 100 * share;
  if (percent > 0 && percent < 0.05) return "< 0.1 %";
  return percent >= 99.95 && percent < 100 ? "> 99.9 %" : `${percent.toFixed(1)} %`;
}

async function answer(model) {
  const start = performance.now();
  const { ids } = model.tokenizer.encode(about.around.join(at("prompt").value));
  const allowed = about.least === about.longest ? `exactly ${about.longest}` : `${about.least} to ${about.longest}`;
  if (ids.length < about.least || ids.length > about.longest) {
    return refuse(`The prompt has ${ids.length} tokens, and the model takes ${allowed}.`);
  }
  const outputs = await call(model, ids, ids.length);
  const ranked = rank(outputs.logits);
  const time = performance.now() - start;
  const missed = findFalse(outputs);
  if (missed) return refuse(`No answer: ${about.guards[missed]}. The model was not made for this prompt.`);
  at("answer").textContent = name(model, ranked[0].index);
  at("probability").textContent = write(ranked[0].share);
  at("time").textContent = `${time.toFixed(1)} ms`;
  at("tokens").textContent = `${ids.length} ${ids.length === 1 ? "token" : "tokens"}`;
  at("rows").replaceChildren(...ranked.slice(0, MOST_ROWS).map(({ index, share }) => {
    const row = document.createElement("tr");
    for (const text of [name(model, index), write(share)]) row.insertCell().textContent = text;
    return row;
  }));
  at("more").hidden = about.past.length === 0;
  if (about.past.length) at("text").textContent = model.tokenizer.decode(await goOn(model, ids, ranked[0].index, outputs));
  show("found");
}

function show(which) {
  for (const id of ["found", "refusal"]) at(id).hidden = id !== which;
  at("result").hidden = false;
}

function refuse(text) {
  at("refusal").textContent = text;
  show("refusal");
}

async function begin() {
  const model = await load();
  let busy = false;
  const run = async () => {
    if (busy) return;
    busy = true;
    try {
      await answer(model);
    } catch (error) {
      refuse(`The model failed: ${error.message}`);
    } finally {
      busy = false;
    }
  };
  at("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    run();
  });
  await run(); // the example; the first call is slower than all others
  await run();
  at("status").textContent = `Ready: ${about.size} of model.`;
  at("run").disabled = false;
}

begin().catch((error) => { at("status").textContent = `It cannot run: ${error.message}`; });
