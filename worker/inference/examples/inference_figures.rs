//! Speed of the embedded generator: `inference_figures MODEL_DIR [THREADS]`, from a release build. The
//! machine's own rate is measured before and after; the lower one counts.

use std::path::Path;
use std::time::{Duration, Instant};

use longstrap_engine::measure_gemm_gflops;
use longstrap_inference::{Call, Generator, GeneratorOptions, Sampling};
use longstrap_model::{Message, Role};

const PROMPT: usize = 512;
const ANSWER: usize = 64;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: inference_figures MODEL_DIR [THREADS]")?;
    let threads = args.next().map_or(Ok(2), |t| t.parse())?;
    let before = measure_gemm_gflops(threads, 1.0)?;
    let mut generator = Generator::new(Path::new(&dir), GeneratorOptions { threads, context: 1024 })?;
    let text = prompt_text(&generator)?;
    let call = |max_tokens| Call {
        messages: vec![Message::new(Role::User, text.clone())],
        answer_prefix: String::new(),
        sampling: Sampling { max_tokens, ..Sampling::default() },
    };
    let tokens = generator.prompt_tokens(&call(1))?;
    let seconds = best_of(3, || {
        let start = Instant::now();
        generator.generate_batch(&[call(1)], &mut |_, _| {})?;
        Ok(start.elapsed())
    })?;
    println!("figure embedded_prefill_tok_s {:.1}", tokens as f64 / seconds);

    // Eight equal calls at once, from the step after their prompts to the last.
    let calls = vec![call(ANSWER); 8];
    let seconds = best_of(3, || {
        let mut steps = Vec::new();
        generator.generate_batch(&calls, &mut |_, generated| steps.push((generated, Instant::now())))?;
        match (steps.first(), steps.last()) {
            (Some((from, start)), Some((to, end))) if to - from == calls.len() * (ANSWER - 2) => {
                Ok(*end - *start)
            }
            _ => Err("an answer ended before its last token".into()),
        }
    })?;
    println!("figure embedded_decode_tok_s {:.1}", (calls.len() * (ANSWER - 2)) as f64 / seconds);
    let after = measure_gemm_gflops(threads, 1.0)?;
    println!("figure machine_gemm_gflops {:.1}", before.min(after));
    Ok(())
}

/// A user's text whose rendered prompt has [`PROMPT`] tokens, or the next few.
fn prompt_text(generator: &Generator) -> Result<String, Error> {
    let words = ["ships", "carry", "grain", "over", "the", "northern", "sea", "and", "bring", "timber"];
    let mut text = String::from("Write a long story about this: ");
    for i in 0.. {
        text.push_str(words[(i * 7 + i / 10) % words.len()]);
        text.push(' ');
        let ids = generator.template().prompt(
            generator.tokenizer(),
            &[Message::new(Role::User, text.as_str())],
            "",
        )?;
        if ids.ids.len() >= PROMPT {
            break;
        }
    }
    Ok(text)
}

/// Seconds of the fastest run.
fn best_of(times: usize, mut run: impl FnMut() -> Result<Duration, Error>) -> Result<f64, Error> {
    let mut best = Duration::MAX;
    for _ in 0..times {
        best = best.min(run()?);
    }
    Ok(best.as_secs_f64())
}
