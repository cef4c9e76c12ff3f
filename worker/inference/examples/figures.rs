//! Speed of the embedded generator: `figures MODEL_DIR [THREADS]`, from a release build. The
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
    let dir = args.next().ok_or("usage: figures MODEL_DIR [THREADS]")?;
    let threads = args.next().map_or(Ok(2), |t| t.parse())?;
    let before = measure_gemm_gflops(threads, 1.0)?;
    let mut generator = Generator::new(Path::new(&dir), GeneratorOptions { threads, context: 1024 })?;
    let text = prompt_text(&generator)?;
    let call = |max_tokens| Call {
        messages: vec![Message::new(Role::User, text.clone())],
        answer_prefix: String::new(),
        sampling: Sampling { max_tokens, temperature: 1.0, ..Sampling::default() },
    };
    let tokens = generator.prompt_tokens(&call(1))?;
    let seconds = best_of(3, || generator.generate_batch(&[call(1)], &mut |_, _| {}))?;
    println!("figure embedded_prefill_tok_s {:.1}", tokens as f64 / seconds);

    // Eight calls at once: the time between their first tokens and their last.
    let calls: Vec<Call> = (0..8).map(|seed| with_seed(call(ANSWER), seed)).collect();
    let (mut rates, mut start) = (Vec::new(), None);
    for _ in 0..2 {
        let mut last = (0, Duration::ZERO);
        start = None;
        generator.generate_batch(&calls, &mut |finished, generated| match start {
            None => start = Some((Instant::now(), generated)),
            Some((since, from)) if finished == 0 => last = (generated - from, since.elapsed()),
            Some(_) => {}
        })?;
        rates.push(last.0 as f64 / last.1.as_secs_f64());
    }
    let _ = start;
    let decode = rates.into_iter().fold(0.0, f64::max);
    println!("figure embedded_decode_tok_s {decode:.1}");
    let after = measure_gemm_gflops(threads, 1.0)?;
    println!("figure machine_gemm_gflops {:.1}", before.min(after));
    Ok(())
}

/// A user's text whose rendered prompt has [`PROMPT`] tokens, or the next few.
fn prompt_text(generator: &Generator) -> Result<String, Error> {
    let words = ["ships", "carry", "grain", "over", "the", "northern", "sea", "and", "bring", "timber"];
    let mut text = String::new();
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

fn with_seed(mut call: Call, seed: u64) -> Call {
    call.sampling.seed = seed;
    call
}

fn best_of<T, E>(times: usize, mut run: impl FnMut() -> Result<T, E>) -> Result<f64, E> {
    let mut best = f64::INFINITY;
    for _ in 0..times {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}
