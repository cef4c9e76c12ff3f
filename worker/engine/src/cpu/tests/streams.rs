//! Streams, events, errors of shape and bounds.

use super::harness::Device;
use crate::{Backend, Dtype, Error, Gemm, Op, Space, Stream, Transpose, View};

#[test]
fn events_order_streams() {
    let mut device = Device::new(1, 1);
    let b = device.backend.clone();
    let (x, x64) = device.random(2000, 500, 0, Dtype::F32);
    let host = View { space: Space::Host, offset: 0, ..x };
    let back = device.view(2000, 500, 0, Dtype::F32);
    let written = b.record(Stream::Compute).unwrap();
    assert!(b.query(written).unwrap());
    b.wait(Stream::Copy, written).unwrap();
    b.copy(Stream::Copy, x, host).unwrap();
    let offloaded = b.record(Stream::Copy).unwrap();
    b.wait(Stream::Comm, offloaded).unwrap();
    b.copy(Stream::Comm, host, back).unwrap();
    let returned = b.record(Stream::Comm).unwrap();
    b.wait(Stream::Compute, returned).unwrap();
    assert!(b.query(offloaded).unwrap() && b.query(returned).unwrap());
    super::harness::close("round trip", &device.get(back), &x64, 0.0);
    assert!(b.query(crate::Event(u64::MAX)).is_err());
}

#[test]
fn an_error_on_a_stream_is_told_and_ends_it() {
    let device = Device::new(1, 1);
    let b = &device.backend;
    let fail = |what: &str| {
        let error = Error::Device(what.to_owned());
        b.enqueue(Stream::Comm, Box::new(move || Err(error))).unwrap();
    };
    fail("first");
    fail("second");
    let event = b.record(Stream::Comm).unwrap();
    let told = b.wait(Stream::Compute, event).unwrap_err();
    assert_eq!(told.to_string(), "first");
    let view = View::dense(Space::Device, 0, 1, 1, Dtype::F32);
    assert!(b.read(view, &mut [0; 4]).is_err());
    assert!(b.synchronize(Stream::Comm).is_err() && b.synchronize(Stream::Copy).is_ok());
    // Who was told by `synchronize` can save what the failure did not touch.
    b.read(view, &mut [0; 4]).unwrap();
    b.enqueue(Stream::Copy, Box::new(|| panic!("boom"))).unwrap();
    assert!(b.synchronize(Stream::Copy).unwrap_err().to_string().contains("boom"));
}

#[test]
fn wrong_views_are_refused_before_anything_runs() {
    let mut device = Device::new(1, 1);
    let b = device.backend.clone();
    let (x, y) = (device.view(4, 6, 2, Dtype::F32), device.view(4, 6, 2, Dtype::F32));
    let c = device.view(4, 4, 0, Dtype::F32);
    let refused = |result: crate::Result<()>, part: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(b.add(Stream::Compute, x.col_range(0..3), y), "x is 4 x 3 and must be 4 x 6");
    refused(b.add(Stream::Compute, x, x), "overlaps");
    refused(b.add(Stream::Compute, View { dtype: Dtype::U32, ..x }, y), "x is U32");
    let far = View { offset: (256 << 20) - 64, ..x };
    refused(b.add(Stream::Compute, far, y), "beyond its arena");
    let gemm = Gemm { a: x, ta: Transpose::No, b: y, tb: Transpose::No, c, beta: crate::Beta::Zero };
    refused(b.gemm(Stream::Compute, gemm), "b is 4 x 6 and must be 6 x 6");
    refused(b.write(x, &[0; 3]), "3 bytes for a view of 96 bytes");
    refused(b.fill(Stream::Compute, View { row_stride: 3, ..x }, 0.0), "overlap each other");
    refused(b.fill(Stream::Compute, View { offset: 2, ..x }, 0.0), "multiple");
}

#[test]
fn overlap_tells_columns_of_one_matrix_apart() {
    let whole = View::dense(Space::Device, 64, 10, 12, Dtype::F32);
    let (a, b, c) = (whole.col_range(0..4), whole.col_range(4..12), whole.col_range(3..5));
    for (x, y, overlap) in [
        (a, b, false),
        (b, a, false),
        (a, c, true),
        (c, b, true),
        (a, a, true),
        (whole, a, true),
        (a.row_range(0..5), a.row_range(5..10), false),
        (a.row_range(3..4), b, false),
        (a.row_range(3..4), b.row_range(3..4), false),
        (c.row_range(3..4), b, true),
        (View { space: Space::Host, ..a }, a, false),
    ] {
        assert_eq!(x.overlaps(&y), overlap, "{x:?} {y:?}");
        assert_eq!(y.overlaps(&x), overlap, "{y:?} {x:?}");
    }
    assert!(Op::Add { x: a, y: b.col_range(0..4) }.check().is_ok());
}

#[test]
fn an_id_beyond_the_vocabulary_is_an_error_and_the_device_goes_on() {
    for threads in [1, 2] {
        let mut device = Device::new(threads, 1);
        let b = device.backend.clone();
        let (table, _) = device.random(10, 4000, 0, Dtype::F32);
        let out = device.view(100, 4000, 0, Dtype::F32);
        let mut ids = vec![3; 100];
        let good = device.ids(&ids);
        ids[57] = 10;
        let bad = device.ids(&ids);
        let message = b.embed(Stream::Compute, bad, table, out).unwrap_err().to_string();
        assert!(message.contains("token id 10 is not below the vocabulary's 10"), "{message}");
        b.embed(Stream::Compute, good, table, out).unwrap();
        assert_eq!(device.get(out)[..4000], device.get(table)[12_000..16_000]);
    }
}
