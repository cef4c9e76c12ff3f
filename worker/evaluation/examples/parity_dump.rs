//! Writes what we compute of a model folder, for `hack/parity`: ids of texts and chats, losses of a
//! row, all logits at some of its positions, log-probabilities of next tokens.
//! `parity_dump MODEL_DIR DUMP.json`

use std::path::Path;

use anyhow::{Context, Result};
use longstrap_inference::Scorer;
use longstrap_model::{ChatTemplate, Message, Role, Tokenizer};
use serde_json::{Value, json};

/// Ordinary, odd and multilingual text; digits and white space are where tokenizers differ.
const TEXTS: [&str; 5] = [
    "Longstrap lets a language model bootstrap its own context length.\n\n",
    "fn main() {\n\tprintln!(\"{:>8}\", 1_234_567.89e-10);\n}\n",
    "  leading spaces, trailing ones  \n\n\n   and 007 digits: 31415926535  ",
    "Zürich, naïve café; Привет, мир! 数は十二です。 🦀🦀",
    "don't we'll I'VE it's <not a tag> & \"quotes\" — dash…",
];

/// Tokens of the row that is scored: three tiles and a ragged one of whatever reads it in blocks.
const ROW: usize = 400;

/// Positions of the row whose logits are written: its ends, and both sides of a tile's border.
const LOGITS_AT: [usize; 8] = [0, 1, 50, 127, 128, 255, 256, ROW - 1];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(out)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: parity_dump MODEL_DIR DUMP.json");
    };
    let dir = Path::new(&dir);
    let tokenizer = Tokenizer::load(dir)?;
    let template = ChatTemplate::load(dir, &tokenizer)?;
    let texts = TEXTS
        .iter()
        .map(|text| Ok(json!({"text": text, "ids": tokenizer.encode_ordinary(text)?})))
        .collect::<Result<Vec<Value>>>()?;
    let dump = json!({
        "texts": texts,
        "chats": chats(&tokenizer, &template)?,
        "rows": [row(dir, &tokenizer)?],
    });
    std::fs::write(&out, serde_json::to_vec(&dump)?).with_context(|| format!("cannot write {out}"))
}

fn chats(tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Vec<Value>> {
    let user = |text: &str| Message::new(Role::User, text);
    let assistant = |text: &str| Message::new(Role::Assistant, text);
    let conversations = [
        (vec![user("List three facts about the Moon.")], true),
        (vec![user("  Hello \n"), assistant("Hello.\n\nHow can I help?  ")], false),
        (
            vec![Message::new(Role::System, "Be brief."), user("1 + 1?"), assistant("2"), user("And 2 + 2?")],
            true,
        ),
    ];
    let mut found = Vec::new();
    for (messages, prompt) in conversations {
        let rendered = if prompt {
            template.prompt(tokenizer, &messages, "")?
        } else {
            template.render(tokenizer, &messages)?
        };
        let messages: Vec<Value> =
            messages.iter().map(|m| json!({"role": m.role.name(), "content": m.content})).collect();
        found.push(json!({"messages": messages, "addGenerationPrompt": prompt, "ids": rendered.ids}));
    }
    Ok(found)
}

fn row(dir: &Path, tokenizer: &Tokenizer) -> Result<Value> {
    let mut tokens = tokenizer.encode_ordinary(&TEXTS.concat().repeat(8))?;
    tokens.truncate(ROW);
    let mut scorer = Scorer::open(dir, ROW + 1, 2, None)?;
    let nll = scorer.prefill(&tokens, &mut |_| {})?;
    let candidates: Vec<u32> = tokens[..32].to_vec();
    let next = scorer.next(&[], &candidates)?;
    let next: Vec<Value> =
        candidates.iter().zip(next).map(|(id, p)| json!({"id": id, "logProbability": p})).collect();
    // From the first token on, as a branch: its logits are made nowhere but at the position.
    scorer.prefill(&tokens[..1], &mut |_| {})?;
    let mut logits = Vec::new();
    for position in LOGITS_AT {
        let values = scorer.next_logits(&tokens[1..=position])?;
        logits.push(json!({"position": position, "values": values}));
    }
    Ok(json!({"tokens": tokens, "nll": nll, "next": next, "logits": logits}))
}
