//! What is done about a corpus that changes: before a run depends on it, it is normalised again;
//! afterwards the change is named, and nothing is replaced.

use longstrap_corpus::CorpusManifest;
use longstrap_crds::Reason;
use longstrap_runtime::StepError;

use super::*;

fn refusal(result: StepResult) -> (Option<Reason>, String) {
    let error: StepError = result.unwrap_err();
    assert_eq!(error.exit_code().code(), 10, "{error}");
    (error.reason(), error.to_string())
}

fn manifest(storage: &Path) -> CorpusManifest {
    serde_json::from_slice(&std::fs::read(storage.join("corpus/corpus.json")).unwrap()).unwrap()
}

/// Files below the corpus's folder.
fn objects(storage: &Path) -> usize {
    let folders = std::fs::read_dir(storage.join("corpus")).unwrap().map(|entry| entry.unwrap().path());
    folders.filter(|path| path.is_dir()).map(|path| std::fs::read_dir(path).unwrap().count()).sum()
}

/// The lines of the example's corpus.
fn lines() -> Vec<String> {
    let text = std::fs::read_to_string(smoke("corpus/corpus.jsonl")).unwrap();
    text.lines().map(|line| format!("{line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corpus_that_was_too_small_is_taken_again_when_it_is_mended() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Scripted::start().await;
    let file = tmp.path().join("few.jsonl");
    // Documents that share nothing, so that cleaning keeps them all.
    let words =
        |n: u32| (0..60).map(move |i: u32| format!("w{} ", (n * 7919 + i).wrapping_mul(2_654_435_761) >> 8));
    let lines: Vec<String> =
        (0..40).map(|n| json!({"text": words(n).collect::<String>()}).to_string() + "\n").collect();
    let half = lines.len() / 2;
    let write = |lines: &[String]| std::fs::write(&file, lines.concat()).unwrap();
    let storage = tmp.path().join("s");
    let mut spec = spec(&storage, &server.url());
    spec.corpus[0].uri = uri(&file);
    spec.samples.long_output = None;

    write(&lines[..half]);
    let length = |spec: &mut SynthesisJobSpec, tokens: u64| {
        let lengths = json!([{"name": "exact", "tokens": tokens}]);
        spec.samples.long_input.as_mut().unwrap().lengths = serde_json::from_value(lengths).unwrap();
    };
    length(&mut spec, 1 << 20);
    let (reason, message) = refusal(prepare(&spec, tmp.path()).await);
    assert_eq!(reason, Some(Reason::InvalidData), "{message}");
    let have = manifest(&storage).report.tokens;
    // Out of reach by less than what is held out, or would come with the other half.
    length(&mut spec, (have + 1_200) * 13 / 12);
    for seed in [8, 7] {
        spec.seed = seed;
        let (reason, message) = refusal(prepare(&spec, tmp.path()).await);
        assert_eq!(reason, Some(Reason::InvalidData), "{message}");
        assert!(message.contains("cannot be reached with this corpus"), "{message}");
    }

    let mut less = spec.clone();
    less.common.storage.uri = uri(&tmp.path().join("less"));
    refusal(prepare(&less, tmp.path()).await);
    less.held_out = None;
    prepare(&less, tmp.path()).await.unwrap();

    // Only more text: nothing else tells the corpora apart.
    write(&lines);
    crate::prepare(&pod(&spec, Step::Prepare, 2, 0, tmp.path()).await).await.unwrap();
    let manifest = manifest(&storage);
    assert!(manifest.report.tokens > have + 1_200, "{:?}", manifest.report);
    assert_eq!(objects(&storage), manifest.objects().count(), "the corpora before are gone");
    let run = std::fs::read_to_string(storage.join("run.json")).unwrap();
    assert!(!run.contains("few.jsonl") && !run.contains("file:"), "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_corpus_of_a_run_is_named_and_replaces_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Scripted::start().await;
    let file = tmp.path().join("corpus.jsonl");
    let lines = lines();
    let write = |lines: &[String]| std::fs::write(&file, lines.concat()).unwrap();
    write(&lines);
    let storage = tmp.path().join("s");
    let mut spec = spec(&storage, &server.url());
    spec.corpus[0].uri = uri(&file);
    prepare(&spec, tmp.path()).await.unwrap();
    let bytes = || ["corpus/corpus.json", "run.json"].map(|name| std::fs::read(storage.join(name)).unwrap());
    let before = bytes();
    let was = format!("1 file of {} bytes → ", lines.concat().len());

    let fewer = lines[1..].concat().len();
    write(&lines[1..]);
    let edited = refusal(prepare(&spec, tmp.path()).await);
    let mut letter = lines.clone();
    letter[3] = letter[3].replacen("the", "The", 1);
    assert_ne!(letter, lines);
    write(&letter);
    let same_size = refusal(prepare(&spec, tmp.path()).await);
    std::fs::remove_file(&file).unwrap();
    let gone = refusal(prepare(&spec, tmp.path()).await);
    for ((reason, message), want) in [
        (&edited, format!("{was}1 file of {fewer} bytes")),
        (&same_size, format!("{was}1 file of {} bytes with other names or contents", lines.concat().len())),
        (&gone, format!("{was}no file")),
    ] {
        assert_eq!(*reason, Some(Reason::FingerprintMismatch), "{message}");
        let line = format!("\n  spec.corpus[valleys] (the files at {}): {want}\n", uri(&file));
        for part in [&line, "--restart-from data", "another output folder"] {
            assert!(message.contains(part), "{part:?} is missing in {message}");
        }
    }

    // With a changed field both are told, in one error.
    let mut other = spec.clone();
    other.seed = 8;
    let (_, message) = refusal(prepare(&other, tmp.path()).await);
    assert!(message.contains("spec.corpus[valleys] (") && message.contains("spec.seed: 7 → 8"), "{message}");
    assert!(!message.contains("unfinished") && !message.contains("corpus.digest"), "{message}");

    // Put back, or the same elsewhere: it is the run.
    write(&lines);
    prepare(&spec, tmp.path()).await.unwrap();
    let moved = tmp.path().join("moved.jsonl");
    std::fs::copy(&file, &moved).unwrap();
    spec.corpus[0].uri = uri(&moved);
    prepare(&spec, tmp.path()).await.unwrap();
    assert!(bytes() == before, "something was made again");

    // A corpus of an earlier version, which kept no digests.
    let mut old = manifest(&storage);
    old.sources.clear();
    let json = serde_json::to_string(&old).unwrap();
    assert!(!json.contains("\"files\""), "{json}");
    std::fs::write(storage.join("corpus/corpus.json"), json).unwrap();
    prepare(&spec, tmp.path()).await.unwrap();

    // Another corpus than the run's is not worked with.
    old.digest = longstrap_storage::Digest::of("another");
    std::fs::write(storage.join("corpus/corpus.json"), serde_json::to_string(&old).unwrap()).unwrap();
    let generated = crate::generate(&pod(&spec, Step::Generate, 1, 0, tmp.path()).await).await;
    let (reason, message) = refusal(generated);
    assert_eq!(reason, Some(Reason::DataChanged), "{message}");
    assert!(message.contains("corpus/corpus.json is not the corpus"), "{message}");
}
