//! The jinja dialect of chat templates, as `transformers` sets it up: trimmed blocks, Python's
//! string methods, `raise_exception`, `strftime_now`, and a `tojson` that escapes no HTML.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use regex::Regex;

use crate::error::{ModelError, Result};

const NAME: &str = "chat";

/// Templates that print a date get this one, Llama 3's own fallback: a rendering is a function of
/// its messages.
const DATE: jiff::civil::Date = jiff::civil::date(2024, 7, 26);

/// A parsed chat template.
#[derive(Debug, Clone)]
pub(crate) struct Jinja {
    environment: Environment<'static>,
}

impl Jinja {
    pub(crate) fn parse(source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| ModelError::Template(full_message(&e)))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            jiff::fmt::strtime::format(&format, DATE.at(0, 0, 0, 0))
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
        });
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| ModelError::Template(full_message(&e)))?;
        Ok(Self { environment })
    }

    pub(crate) fn render(&self, context: Value) -> Result<String> {
        self.environment
            .get_template(NAME)
            .and_then(|t| t.render(context))
            .map_err(|e| ModelError::Template(full_message(&e)))
    }
}

fn full_message(e: &Error) -> String {
    let line = e.line().map_or(String::new(), |n| format!(" (line {n})"));
    format!("{e}{line}")
}

/// `{% generation %}` marks assistant text for training libraries; we find it by ourselves. A block
/// that is always taken stands in, so that its trimming of white space stays.
fn without_generation_tags(source: &str) -> String {
    let tag = |word: &str| {
        Regex::new(&format!(r"\{{%([-+]?)\s*{word}\s*([-+]?)%\}}")).expect("the pattern is a constant")
    };
    let opened = tag("generation").replace_all(source, "{%$1 if true $2%}").into_owned();
    tag("endgeneration").replace_all(&opened, "{%$1 endif $2%}").into_owned()
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=…)`.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = String::new();
    dump(value, indent, 0, &mut out)?;
    Ok(out)
}

fn dump(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    let (open, close) = match value.kind() {
        ValueKind::Map => ('{', '}'),
        ValueKind::Seq | ValueKind::Iterable => ('[', ']'),
        kind => {
            out.push_str(&scalar(value, kind)?);
            return Ok(());
        }
    };
    let line = |out: &mut String, depth: usize| {
        if let Some(n) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(n * depth));
        }
    };
    out.push(open);
    let mut empty = true;
    for item in value.try_iter()? {
        if !empty {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        empty = false;
        line(out, depth + 1);
        if value.kind() == ValueKind::Map {
            out.push_str(&quoted(&item.to_string()));
            out.push_str(": ");
            dump(&value.get_item(&item)?, indent, depth + 1, out)?;
        } else {
            dump(&item, indent, depth + 1, out)?;
        }
    }
    if !empty {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn scalar(value: &Value, kind: ValueKind) -> Result<String, Error> {
    match kind {
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(value.to_string()),
        ValueKind::String => Ok(quoted(value.as_str().unwrap_or_default())),
        other => Err(Error::new(ErrorKind::BadSerialization, format!("a value of kind {other} is not JSON"))),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
