"""The demo's corpus. Run: python3 -m unittest discover -s hack/quickstart"""

import hashlib
import json
import tempfile
import unittest
from pathlib import Path

import corpus

SHORT = corpus.HERE.parents[1] / "examples" / "quickstart" / "short.jsonl"

MARKDOWN = """---
title: front matter
---
[![Build](https://ci/x.svg)](https://ci) <img src="logo.png" width="90">
<!-- hidden -->
Widget
======

A [widget](https://w "title") for `#![no_std]` and [`Vec<T>`], see [the guide][g] or <https://w/docs>. Tom &amp; Ann.

[g]: https://guide
[`Vec<T>`]: https://std

## Usage

Add this to `Cargo.toml`:

```toml
widget = "1"
```

~~~
## Not a heading
```
~~~

Then it turns. Arrays are written a[i] and a stray ` is harmless.

## Example

```rust
fn main() {}
```

## License

MIT.

### Contribution

Yours too.

## Speed

Fast.
"""

PROSE = """# Widget

A widget for `#![no_std]` and `Vec<T>`, see the guide or https://w/docs. Tom & Ann.

## Usage

Then it turns. Arrays are written a[i] and a stray ` is harmless.

## Speed

Fast.
"""


class Clean(unittest.TestCase):
    def test_markdown_becomes_prose(self):
        self.assertEqual(corpus.clean(MARKDOWN), PROSE)
        self.assertEqual(corpus.clean(MARKDOWN.replace("\n", "\r\n")), PROSE)
        self.assertEqual(corpus.clean(PROSE), PROSE, "prose stays as it is")

    def test_an_open_fence_ends_with_the_file(self):
        self.assertEqual(corpus.clean("# A\n\nText.\n\n```\ncode\n"), "# A\n\nText.\n")


class Documents(unittest.TestCase):
    def crate(self, root, name, files):
        folder = Path(root) / name
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder

    def test_only_prose_files_and_one_group_for_a_repository(self):
        words = b"# Title\n\n" + b"some words of prose " * 30
        with tempfile.TemporaryDirectory() as root:
            a = self.crate(root, "a", {
                "README.md": words, "docs/guide.md": words, "CHANGELOG.md": words, "LICENSE-MIT.md": words, "tests/x.md": words,
                ".github/y.md": words, "CONTRIBUTING.md": words, "short.md": b"# Few words", "latin1.md": words + b"\xe9"})
            b = self.crate(root, "b", {"README.md": words})
            docs = corpus.documents([("b", "2.0.0", b, "http://github.com/X/Y/tree/main/b"), ("a", "1.0.0", a, "https://github.com/x/y.git/")])
        self.assertEqual([d["id"] for d in docs], ["a-1.0.0/README.md", "a-1.0.0/docs/guide.md", "b-2.0.0/README.md"])
        self.assertEqual({d["group"] for d in docs}, {"github.com/x/y"})
        self.assertEqual({d["sha256"] for d in docs}, {hashlib.sha256(words).hexdigest()})
        self.assertEqual(corpus.group_of(None, "lonely"), "lonely")


class Pinned(unittest.TestCase):
    def test_the_pins_give_the_recorded_bytes(self):
        docs = corpus.documents(corpus.pinned_packages())
        content = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in docs).encode()
        self.assertEqual(hashlib.sha256(content).hexdigest(), corpus.DIGEST.read_text().strip())
        self.assertGreater(len({d["group"] for d in docs}), 100)
        self.assertEqual(len({d["id"] for d in docs}), len(docs))


class Short(unittest.TestCase):
    def test_short_samples_are_chats_that_end_in_an_answer(self):
        lines = SHORT.read_text(encoding="utf-8").splitlines()
        self.assertGreaterEqual(len(lines), 40)
        self.assertEqual(len(set(lines)), len(lines))
        for line in lines:
            messages = json.loads(line)["messages"]
            roles = [m["role"] for m in messages if m["role"] != "system"]
            self.assertEqual(roles, ["user", "assistant"] * (len(roles) // 2), line)
            self.assertTrue(all(m["content"].strip() == m["content"] != "" for m in messages), line)


if __name__ == "__main__":
    unittest.main()
