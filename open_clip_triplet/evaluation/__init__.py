"""The paper's evaluation suite. Command line: ``tools/evaluate.py`` (= ``triplet-evaluate``)."""
