"""Makes the demo's corpus: READMEs and guides of published crates, pinned by pins/Cargo.lock.

The texts belong to their authors, so nothing of them is kept in this repository: `cargo fetch --locked`
brings the crates into cargo's own registry folder, and this script reads them there, drops what is not
prose and writes OUT/corpus.jsonl (id, group = repository, path, sha256 of the file, title, text).
The same pins give the same bytes. Standard library only.

    python3 corpus.py --out DIR
"""

import argparse
import hashlib
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINS = HERE / "pins" / "Cargo.toml"
DIGEST = HERE / "corpus.sha256"

# Folders and files that hold no prose about the crate, or text that is the same in many crates.
SKIPPED_FOLDERS = {"tests", "test", "testdata", "benches", "bench", "fuzz", "target", "vendor", "third_party", "ci"}
SKIPPED_FILES = re.compile(
    r"change|release|history|news|licen[cs]e|copying|copyright|conduct|contribut|security|authors|governance|maintain|"
    r"support|template|^todo|^index$|issue|pull_request|upgrad|migrat|summary|third|notice|credits|claude|agents", re.I)
SKIPPED_SECTIONS = re.compile(
    r"licen[cs]e|copyright|contribut|conduct|changelog|change log|release notes|msrv|minim(um|al) (supported )?rust|rust version|"
    r"sponsor|backers|support(ed)? (us|rust)|semver|badges|table of contents|^contents$|acknowledg|credits|authors|^status$|related crates", re.I)
LEAST_WORDS = 80

HTML_TAG = re.compile(
    r"</?(a|abbr|b|blockquote|br|center|code|dd|details|div|dl|dt|em|font|h[1-6]|hr|i|img|kbd|li|ol|p|picture|pre|small|"
    r"source|span|strong|sub|summary|sup|svg|table|tbody|td|th|thead|tr|tt|u|ul|video)(\s[^<>]*)?/?>", re.I)
DEFINITION = re.compile(r"^ {0,3}\[([^\]\n]+)\]:[ \t]*\S[^\n]*$", re.M)
HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")


def without_fences(text):
    """Drops fenced code blocks; one that is never closed ends with the file, as in CommonMark."""
    kept, fence = [], None
    for line in text.split("\n"):
        mark = re.match(r"^[ \t>]*(`{3,}|~{3,})(.*)$", line)
        if fence is None:
            if mark and not ("`" in mark.group(2) and mark.group(1)[0] == "`"):
                fence = mark.group(1)
                drop_announcement(kept)
            else:
                kept.append(line)
        elif mark and mark.group(1).startswith(fence) and not mark.group(2).strip():
            fence = None
    return "\n".join(kept)


def drop_announcement(lines):
    """Drops a paragraph of one line that only announces the code that follows: "Add this to Cargo.toml:"."""
    while lines and not lines[-1].strip():
        lines.pop()
    if lines and lines[-1].rstrip().endswith(":") and (len(lines) == 1 or not lines[-2].strip()):
        lines.pop()
    lines.append("")


def outside_code(text, change):
    """Applies `change` to the text with its code spans masked: `#![feature]` is no image."""
    masked, parts, at = [], [], 0
    # A span stays within its paragraph: a stray backtick must not mask the rest of the file.
    for match in re.finditer(r"(?<!`)(`+)(?!`)((?:(?!\n[ \t]*\n).)+?)(?<!`)\1(?!`)", text, flags=re.S):
        parts.append(text[at:match.start()] + f"\x00{len(masked)}\x00")
        masked.append(match.group(0))
        at = match.end()
    changed = change("".join(parts) + text[at:])
    return re.sub(r"\x00(\d+)\x00", lambda m: masked[int(m.group(1))], changed)


def without_sections(lines):
    """Drops sections whose heading is skipped, and headings that are left with nothing below them."""
    kept, skip_level, first = [], None, True
    for line in lines:
        heading = HEADING.match(line)
        if heading:
            level = len(heading.group(1))
            if skip_level is not None and level > skip_level:
                continue
            # The first heading names the crate, whatever it is called.
            skip_level = level if not first and SKIPPED_SECTIONS.search(heading.group(2)) else None
            first = False
        if skip_level is None:
            kept.append(line)
    out = []
    for i, line in enumerate(kept):
        heading = HEADING.match(line)
        if heading:
            below = next((other for other in kept[i + 1:] if other.strip()), None)
            after = below and HEADING.match(below)
            if below is None or (after and len(after.group(1)) <= len(heading.group(1))):
                continue
        out.append(line)
    return out


def without_labels(lines):
    """Drops lines of a word or two above the first heading: what is left of tabs and badges."""
    first = next((i for i, line in enumerate(lines) if HEADING.match(line)), 0)
    return [line for i, line in enumerate(lines) if i >= first or len(line.split()) > 2]


def without_links(text, defined):
    """Drops images and tags, and keeps of each link what a reader sees. A badge is an image in a link."""
    text = re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])?", "", text)
    text = re.sub(r"\[\s*\](\([^)]*\)|\[[^\]]*\])?", "", text)
    text = re.sub(r"\[([^\[\]]+)\](\((?:[^()\s]|\([^()]*\))*(?:\s+\"[^\"]*\")?\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"\[([^\[\]\n]+)\]", lambda m: m.group(1) if "\x00" in m.group(1) or m.group(1).lower() in defined else m.group(0), text)
    text = re.sub(r"<((https?|mailto):[^>\s]*)>", r"\1", text)
    return html.unescape(HTML_TAG.sub("", text))


def clean(text):
    """Markdown to prose: no badges, link targets, HTML, code blocks or boilerplate sections."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"\{\{#.*?\}\}", "", text)
    text = without_fences(text)
    # Headings underlined with = or - become # headings, so that sections are seen.
    text = re.sub(r"^(\S[^\n]*)\n=+[ \t]*$", r"# \1", text, flags=re.M)
    text = re.sub(r"^(\w[^\n|]*)\n-{3,}[ \t]*$", r"## \1", text, flags=re.M)
    defined = {name.strip("`").lower() for name in DEFINITION.findall(text)}
    text = DEFINITION.sub("", text)
    text = outside_code(text, lambda t: without_links(t, defined))
    lines = [line.rstrip().replace("\u00a0", " ") for line in text.split("\n")]
    # What held only badges and links now holds only punctuation.
    lines = ["" if not re.search(r"\w", line) else line for line in lines]
    lines = without_labels(without_sections(lines))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def title_of(text, crate):
    heading = next((HEADING.match(line) for line in text.split("\n") if HEADING.match(line)), None)
    # Emphasis goes, `derive_more` stays.
    return re.sub(r"`|(?<!\w)[*_]+(?=\w)|(?<=\w)[*_]+(?!\w)", "", heading.group(2)) if heading else crate


def group_of(repository, crate):
    """Crates of one repository share a group, however they spell its address."""
    if not repository:
        return crate
    path = re.sub(r"^[a-z+]+://(www\.)?|\.git(?=/|$)|/(tree|blob)/.*$|/+$", "", repository.strip().lower())
    return "/".join(path.split("/")[:3])


def prose_files(folder):
    for path in sorted(folder.rglob("*.md"), key=lambda p: p.relative_to(folder).as_posix()):
        relative = path.relative_to(folder)
        folders = {part.lower() for part in relative.parts[:-1]}
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and not folders & SKIPPED_FOLDERS and not SKIPPED_FILES.search(path.stem):
            yield path, relative.as_posix()


def documents(packages):
    """Documents of crates, given as (name, version, folder, repository)."""
    out = []
    for name, version, folder, repository in sorted(packages, key=lambda p: p[:2]):
        for path, relative in prose_files(folder):
            raw = path.read_bytes()
            try:
                text = clean(raw.decode("utf-8"))
            except UnicodeDecodeError:
                continue
            if len(re.findall(r"[A-Za-z]{2,}", text)) < LEAST_WORDS:
                continue
            out.append({
                "id": f"{name}-{version}/{relative}", "group": group_of(repository, name), "path": relative,
                "sha256": hashlib.sha256(raw).hexdigest(), "title": title_of(text, name), "text": text,
            })
    return out


def cargo(*arguments):
    command = [os.environ.get("CARGO", "cargo"), *arguments, "--manifest-path", str(PINS), "--locked"]
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    except FileNotFoundError:
        sys.exit("corpus: cargo is not on the PATH; install Rust from https://rustup.rs")
    if run.returncode != 0:
        sys.exit(f"corpus: '{' '.join(command)}' failed with exit code {run.returncode}; its message stands above")
    return run.stdout


def pinned_packages():
    cargo("fetch", "--quiet")
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--offline"))
    own = set(metadata["workspace_members"])
    return [(p["name"], p["version"], Path(p["manifest_path"]).parent, p["repository"])
            for p in metadata["packages"] if p["id"] not in own]


def write(path, content):
    """Whole or not at all, whatever kills us."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    os.replace(draft, path)


def main():
    parser = argparse.ArgumentParser(description="Make the demo's corpus from pinned crates.")
    parser.add_argument("--out", required=True, type=Path, help="output folder; corpus.jsonl is written there")
    parser.add_argument("--pin", action="store_true", help="record the digest of what comes out as the expected one")
    options = parser.parse_args()
    target, expected = options.out / "corpus.jsonl", DIGEST.read_text().strip() if DIGEST.exists() else ""
    if not options.pin and target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == expected:
        print(f"corpus: {target} is there")
        return
    docs = documents(pinned_packages())
    content = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in docs).encode()
    digest = hashlib.sha256(content).hexdigest()
    if options.pin:
        DIGEST.write_text(digest + "\n")
    elif digest != expected:
        print(f"corpus: sha256 {digest}, the pinned one is {expected}: figures will differ a little", file=sys.stderr)
    write(target, content)
    print(f"corpus: {len(docs)} documents of {len({d['group'] for d in docs})} repositories, "
          f"{sum(len(d['text']) for d in docs)} characters, in {target}")


if __name__ == "__main__":
    main()
