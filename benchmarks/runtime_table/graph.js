// One graph on feeds ({name: {type, dims, data}}) by ONNX Runtime's JavaScript API: the place of the highest logit after
// each prompt. A guard that is false, or whatever the runtime refuses, is an error.
async (ort, graph, feeds) => {
  const session = await ort.InferenceSession.create(graph);
  const tensors = {};
  for (const [name, { type, dims, data }] of Object.entries(feeds)) {
    const array = type === "int64" ? BigInt64Array.from(data, BigInt) : Float32Array.from(data);
    tensors[name] = new ort.Tensor(type, array, dims);
  }
  const given = await session.run(tensors);
  for (const [name, { type, data }] of Object.entries(given)) {
    if (type === "bool" && !data.every(Boolean)) throw new Error(`${name} is false`);
  }
  const { dims, data } = given.logits, width = dims.at(-1), each = data.length / dims[0];
  return Array.from({ length: dims[0] }, (_, row) => {
    const last = data.subarray((row + 1) * each - width, (row + 1) * each);
    return last.indexOf(last.reduce((highest, value) => Math.max(highest, value)));
  });
}
