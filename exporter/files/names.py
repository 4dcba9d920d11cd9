"""The names of a bundle's files."""

MODEL, MANIFEST, CARD, RUNNER = "model.onnx", "model.json", "README.md", "run.py"
TOKENIZER = "tokenizer.json"
CONFIG, GENERATION = "config.json", "generation_config.json"
GENAI = "genai_config.json"
PAGE = "index.html"
REPORT = "model.html"
SUFFIXES = (".onnx", ".json")  # of the files that a job writes beside each other, its manifest last
REPORT_SUFFIX = ".html"
