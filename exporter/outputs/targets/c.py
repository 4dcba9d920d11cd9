"""A small program in C against ONNX Runtime's C API, and what CMake builds it with.

C has no tokenizer, so the program takes token ids, and prints the likeliest answer's. Where the model has answers of
its own, a table beside the program has their words. Like run.py it is filled in for the graph at hand, so that it shows
what a caller has to do and nothing else.
"""

from __future__ import annotations

import json
from string import Template

from exporter.files.names import MODEL
from exporter.graph.guards import GUARDS
from exporter.outputs.answers import name_answers
from exporter.outputs.shape import BundleShape
from exporter.outputs.targets.target import BundleTarget, Contents

PROGRAM, BUILD, ANSWERS = "c/run.c", "c/CMakeLists.txt", "c/answers.tsv"
_API = 18  # the lowest ONNX Runtime that opens our graphs; later ones have its functions at the same places

_TYPE = "ONNX_TENSOR_ELEMENT_DATA_TYPE"
_PROGRAM = Template("""\
// run FOLDER ID [ID ...]: the likeliest answer after a prompt of token ids (C has no tokenizer: see tokenizer.json).
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>

enum { LEAST = $least, LONGEST = $longest, WIDTH = $width };  // tokens of a prompt; logits of a position
static const OrtApi *api;
static const char *outputs[] = {$outputs};
static const char *refusals[] = {$refusals};  // what a false output means
enum { N_OUTPUTS = sizeof(outputs) / sizeof(*outputs) };

static void check(OrtStatus *status) {
  if (status == NULL) return;
  fprintf(stderr, "%s\\n", api->GetErrorMessage(status));
  exit(1);
}

static OrtValue *tensor(OrtMemoryInfo *memory, void *data, const int64_t *shape, size_t rank, int type) {
  OrtValue *value = NULL;
  size_t bytes = sizeof(int64_t);
  for (size_t i = 0; i < rank; i++) bytes *= (size_t)shape[i];
  check(api->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape, rank, type, &value));
  return value;
}

int main(int argc, char **argv) {
  static int64_t ids[LONGEST]$arrays;
  int n = argc - 2;
  if (n < LEAST || n > LONGEST) return fprintf(stderr, "the prompt has %d tokens, not $allowed\\n", n < 0 ? 0 : n), 1;
  for (int i = 0; i < n; i++) {
    char *end;
    ids[i] = strtoll(argv[i + 2], &end, 10);$mark
    if (end == argv[i + 2] || *end != '\\0') return fprintf(stderr, "no token id: %s\\n", argv[i + 2]), 1;
  }
  api = OrtGetApiBase()->GetApi($api);
  if (api == NULL) return fprintf(stderr, "ONNX Runtime 1.$api or newer is needed\\n"), 1;
  OrtEnv *env;
  OrtSessionOptions *options;
  OrtSession *session;
  OrtMemoryInfo *memory;
  char path[4096];
  snprintf(path, sizeof path, "%s/$model", argv[1]);
  check(api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "run", &env));
  check(api->CreateSessionOptions(&options));
  check(api->CreateSession(env, path, options, &session));
  check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));

  const int64_t shape[] = {1, n};
$feeds
  OrtValue *values[N_OUTPUTS] = {NULL};
  check(api->Run(session, NULL, inputs, feeds, sizeof feeds / sizeof *feeds, outputs, N_OUTPUTS, values));
  for (int i = 1; i < N_OUTPUTS; i++) {
    void *fits;
    check(api->GetTensorMutableData(values[i], &fits));
    if (!*(unsigned char *)fits) return fprintf(stderr, "%s\\n", refusals[i]), 1;
  }
  float *logits;
  check(api->GetTensorMutableData(values[0], (void **)&logits));
$last
  int best = 0;
  for (int i = 1; i < WIDTH; i++) best = logits[i] > logits[best] ? i : best;
$tail
  return 0;
}
""")
_FEEDS = Template("""\
  const char *inputs[] = {$names};
  const OrtValue *feeds[] = {
    $values};""")
_PAST = Template("""\
  const int64_t past$heads[] = {1, $heads, 0, $width};
""")
_LINE = Template("""\
  snprintf(path, sizeof path, "%s/$answers", argv[1]);  // one answer a line, in the order of the logits
  FILE *table = fopen(path, "r");
  if (table == NULL) return perror(path), 1;
  for (int line = 0, c; line <= best && (c = getc(table)) != EOF; line += c == '\\n') {
    if (line == best) putchar(c);
  }
  fclose(table);""")
_BUILD = """\
# cmake -S c -B build -DONNXRUNTIME=FOLDER && cmake --build build && build/run . ID ...
# FOLDER is an unpacked release of ONNX Runtime, with include and lib; without it the system's is taken.
cmake_minimum_required(VERSION 3.16)
project(run C)
find_path(ONNXRUNTIME_INCLUDE onnxruntime_c_api.h HINTS "${ONNXRUNTIME}/include" PATH_SUFFIXES onnxruntime)
find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS "${ONNXRUNTIME}/lib")
if(NOT ONNXRUNTIME_INCLUDE OR NOT ONNXRUNTIME_LIBRARY)
  message(FATAL_ERROR "ONNX Runtime's header or library is missing; give -DONNXRUNTIME=FOLDER")
endif()
add_executable(run run.c)
target_include_directories(run PRIVATE "${ONNXRUNTIME_INCLUDE}")
target_link_libraries(run PRIVATE "${ONNXRUNTIME_LIBRARY}")
set_target_properties(run PROPERTIES C_STANDARD 11 C_STANDARD_REQUIRED ON)
"""


def write_c(shape: BundleShape) -> Contents:
    """The program, its CMakeLists.txt, and the table of answers where the logits are of some tokens alone."""
    words = name_answers(shape)
    texts: Contents = {PROGRAM: render_program(shape, table=bool(words)), BUILD: _BUILD}
    if words:
        rows = zip(shape.manifest.export.answer_ids, words, strict=True)
        texts[ANSWERS] = "".join(f"{token}\t{word}\n" for token, word in rows)
    return texts


def render_program(shape: BundleShape, *, table: bool) -> str:
    """run.c; with `table` it prints a line of it, else the token's id."""
    outputs = shape.manifest.onnx.outputs
    guards = [name for name in GUARDS if name in outputs]
    masked, positions, export = shape.form != "plain", "position_ids" in shape.inputs, shape.manifest.export
    return _PROGRAM.substitute(
        least=shape.max_length if shape.pinned else 1,
        longest=shape.max_length,
        allowed=shape.max_length if shape.pinned else f"1 to {shape.max_length}",
        width=outputs["logits"][-1],
        outputs=", ".join(map(json.dumps, ["logits", *guards])),
        refusals=", ".join(["NULL", *(json.dumps(GUARDS[name]) for name in guards)]),
        arrays=(", mask[LONGEST]" if masked else "") + (", positions[LONGEST]" if positions else ""),
        mark=("\n    mask[i] = 1;" if masked else "") + ("\n    positions[i] = i;" if positions else ""),
        api=_API,
        model=MODEL,
        feeds=_render_feeds(shape.inputs, precision=export.precision),
        last="  logits += (n - 1) * WIDTH;  // those after the last token" if export.logits == "all" else "",
        tail=_LINE.substitute(answers=ANSWERS) if table else '  printf("%d\\n", best);',
    )


def _render_feeds(inputs: dict[str, list[str | int]], *, precision: str) -> str:
    """The arrays `inputs` and `feeds`: ids, mask, and an empty past, whose shapes differ by their heads."""
    kind = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}.get(precision, "FLOAT")
    arrays = {"input_ids": "ids", "attention_mask": "mask", "position_ids": "positions"}
    shapes, values = {}, []
    for name, dims in inputs.items():
        if name in arrays:
            values.append(f"tensor(memory, {arrays[name]}, shape, 2, {_TYPE}_INT64)")
        else:
            shapes[dims[1]] = _PAST.substitute(heads=dims[1], width=dims[3])
            values.append(f"tensor(memory, ids, past{dims[1]}, 4, {_TYPE}_{kind})")
    lists = _FEEDS.substitute(names=", ".join(map(json.dumps, inputs)), values=",\n    ".join(values))
    return "".join(shapes.values()) + lists


def describe_c(shape: BundleShape) -> str:
    """How to build it, and what it takes."""
    return (
        "In C: `cmake -S c -B build -DONNXRUNTIME=FOLDER && cmake --build build && build/run . ID ...`, where `FOLDER` "
        "is an unpacked release of ONNX Runtime and the IDs are a prompt's tokens by `tokenizer.json` (C has no "
        "tokenizer)."
    )


C_TARGET = BundleTarget(write_c, describe=describe_c)
