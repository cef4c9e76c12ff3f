use std::io::Write;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::file::properties::WriterProperties;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};

use super::*;

fn source(format: Format, text_field: &str, group_field: Option<&str>) -> Source {
    Source {
        name: "web".into(),
        uri: "s3://bucket/web/".into(),
        format,
        text_field: text_field.into(),
        group_field: group_field.map(str::to_owned),
        files: Vec::new(),
    }
}

fn all(source: &Source, path: &Path) -> Result<Vec<RawDocument>> {
    let mut rows = Vec::new();
    read_file(source, "sub/file", path, &mut |row| {
        rows.push(row);
        Ok(())
    })?;
    Ok(rows)
}

fn write_parquet(path: &Path) {
    let columns: [(&str, ArrayRef); 4] = [
        ("other", Arc::new(Int64Array::from_iter_values(0..5))),
        ("body", Arc::new(StringArray::from(vec![Some("a"), None, Some("c"), Some("d"), Some("e")]))),
        ("repo", Arc::new(Int64Array::from(vec![Some(7), Some(7), None, Some(8), Some(9)]))),
        ("title", Arc::new(StringArray::from(vec!["A", "B", "C", "D", "E"]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_by_row_group_with_a_column_map() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.parquet");
    write_parquet(&path);
    let rows = all(&source(Format::Parquet, "body", Some("repo")), &path).unwrap();
    let texts: Vec<_> = rows.iter().map(|row| row.text.as_deref()).collect();
    assert_eq!(texts, [Some("a"), None, Some("c"), Some("d"), Some("e")]);
    let groups: Vec<_> = rows.iter().map(|row| row.group.as_deref()).collect();
    assert_eq!(groups, [Some("7"), Some("7"), None, Some("8"), Some("9")]);
    assert_eq!(rows[4].row, 5);
    assert_eq!(rows[4].title, "E");
}

#[test]
fn broken_files_name_file_and_row() {
    let tmp = tempfile::tempdir().unwrap();
    let path = |name: &str| tmp.path().join(name);
    let gz = |text: &str| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(text.as_bytes()).unwrap();
        out.finish().unwrap()
    };
    write_parquet(&path("whole.parquet"));
    let whole = std::fs::read(path("whole.parquet")).unwrap();
    let lines = "{\"text\":\"one\",\"g\":1}\n\n{\"text\":null}\n";
    let noise: String = (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_string()).collect();
    let long = gz(&format!("{lines}{{\"text\":\"{noise}\"}}\n"));
    let cases: Vec<(&str, Vec<u8>, Source, &str)> = vec![
        (
            "cut.parquet",
            whole[..whole.len() - 9].to_vec(),
            source(Format::Parquet, "body", None),
            "s3://bucket/web/sub/file: is no whole parquet",
        ),
        (
            "flip.parquet",
            {
                let mut b = whole.clone();
                b[8..60].fill(0xee);
                b
            },
            source(Format::Parquet, "body", None),
            "file, row ",
        ),
        (
            "column.parquet",
            whole.clone(),
            source(Format::Parquet, "text", None),
            "no column `text` (set textField; columns: other, body",
        ),
        ("group.parquet", whole, source(Format::Parquet, "body", Some("x")), "no column `x` (set groupField"),
        (
            "bad.jsonl",
            format!("{lines}{{\"text\":\"cut o").into_bytes(),
            source(Format::JsonLines, "text", None),
            "row 4: is no JSON object",
        ),
        (
            "field.jsonl",
            lines.into(),
            source(Format::JsonLines, "body", None),
            "row 1: has no field `body` (set textField; fields: text, g)",
        ),
        (
            "type.jsonl",
            b"{\"text\":5}".to_vec(),
            source(Format::JsonLines, "text", None),
            "row 1: field `text` is no string",
        ),
        ("utf8.jsonl", b"{\"text\":\"\xff\"}".to_vec(), source(Format::JsonLines, "text", None), "row 1"),
        (
            "cut.jsonl.gz",
            long[..long.len() / 2].to_vec(),
            source(Format::JsonLines, "text", None),
            "row 4: cannot be read",
        ),
        (
            "cut.jsonl.zst",
            {
                let b = zstd::encode_all(format!("{lines}{{\"text\":\"{noise}\"}}\n").as_bytes(), 3).unwrap();
                b[..b.len() / 2].to_vec()
            },
            source(Format::JsonLines, "text", None),
            "row 1: cannot be read (incomplete frame)",
        ),
        (
            "crc.jsonl.gz",
            {
                let mut b = gz(lines);
                let n = b.len();
                b[n - 6] ^= 1;
                b
            },
            source(Format::JsonLines, "text", None),
            "cannot be read",
        ),
    ];
    for (name, bytes, mut source, want) in cases {
        std::fs::write(path(name), bytes).unwrap();
        let error = all(&source, &path(name)).unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
        assert!(error.starts_with("corpus `web`, file s3://bucket/web/sub/file"), "{name}: {error}");
        // A URI that is one file is named as it stands in the manifest.
        source.uri = format!("s3://bucket/{name}");
        let error = read_file(&source, "", &path(name), &mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.starts_with(&format!("corpus `web`, file s3://bucket/{name}")), "{name}: {error}");
    }
}

#[test]
fn json_lines_plain_and_compressed_read_alike() {
    let tmp = tempfile::tempdir().unwrap();
    let text = "{\"text\":\"one\",\"g\":1,\"title\":\"T\"}\r\n\n{\"text\":null,\"g\":\"x\"}";
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    let files = [
        ("a.jsonl", text.as_bytes().to_vec()),
        ("a.jsonl.gz", gz.finish().unwrap()),
        ("a.jsonl.zst", zstd::encode_all(text.as_bytes(), 3).unwrap()),
    ];
    let want = vec![
        RawDocument { row: 1, group: Some("1".into()), title: "T".into(), text: Some("one".into()) },
        RawDocument { row: 3, group: Some("x".into()), title: String::new(), text: None },
    ];
    for (name, bytes) in files {
        let path = tmp.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(all(&source(Format::JsonLines, "text", Some("g")), &path).unwrap(), want, "{name}");
    }
    let binary = tmp.path().join("x.md");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert_eq!(all(&source(Format::Text, "text", None), &binary).unwrap()[0].text, None);
}
