use proptest::prelude::*;

use super::*;

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn mark(sequence: u32) -> Mark {
    Mark { run: 7, publisher: 1, sequence, time: 99 }
}

fn text(mark: Mark) -> String {
    let mut bytes = Vec::new();
    mark.write(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

/// The bytes of a stream in chunks that end at `cuts`, and what it holds.
fn stream(cuts: &[usize]) -> (Vec<u8>, Vec<Frame>) {
    let body = format!(
        "retry: 2000\nid: 4\nevent: tidelog.live\ndata: {{\"tail\":4}}\n\n:\nid: 5\ndata: {}xxx\n\nid: 8\nevent: created\r\n\
         data:{{\"a~t~\":\"~tb{}\"}}\r\n\r\nid: 9\ndata: a\ndata: {}\ndata: b\n\n: beat\n\nid: 10\nevent: tidelog.gap\ndata: {{}}\n\n",
        text(mark(0)),
        text(mark(1)),
        text(mark(2))
    );
    let event = |kind, id, mark| Frame { kind, id: Some(id), mark };
    let frames = vec![
        event(Kind::Live, 4, None),
        event(Kind::Event, 5, Some(mark(0))),
        event(Kind::Event, 8, Some(mark(1))),
        event(Kind::Event, 9, Some(mark(2))),
        event(Kind::Gap, 10, None),
    ];
    let mut bytes = HEAD.as_bytes().to_vec();
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % body.len()).chain([0, body.len()]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    for pair in cuts.windows(2) {
        let chunk = &body[pair[0]..pair[1]];
        bytes.extend_from_slice(format!("{:X};x=1\r\n{chunk}\r\n", chunk.len()).as_bytes());
    }
    bytes.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
    (bytes, frames)
}

/// What comes out when the bytes come in reads that end at `cuts`.
fn read(bytes: &[u8], cuts: &[usize], look: Look) -> (Vec<Frame>, Wire) {
    let mut wire = Wire::new(look);
    let mut frames = Vec::new();
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % bytes.len()).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    for pair in cuts.windows(2) {
        wire.feed(&bytes[pair[0]..pair[1]], &mut |frame| frames.push(*frame)).unwrap();
    }
    (frames, wire)
}

proptest! {
    #[test]
    fn any_cut_of_the_bytes_gives_the_same(
        chunks in proptest::collection::vec(any::<usize>(), 0..20),
        reads in proptest::collection::vec(any::<usize>(), 0..40),
    ) {
        let (bytes, frames) = stream(&chunks);
        let (got, wire) = read(&bytes, &reads, Look::Frames);
        prop_assert_eq!(&got, &frames);
        prop_assert!(wire.is_done() && wire.refusal().is_none());
        let (got, wire) = read(&bytes, &reads, Look::Marks);
        let marks: Vec<_> = frames.iter().filter_map(|frame| frame.mark).collect();
        prop_assert_eq!(got.iter().filter_map(|frame| frame.mark).collect::<Vec<_>>(), marks);
        prop_assert!(wire.is_done());
    }
}

#[test]
fn every_single_byte_may_be_a_read() {
    let (bytes, frames) = stream(&[]);
    let cuts: Vec<_> = (0..bytes.len()).collect();
    assert_eq!(read(&bytes, &cuts, Look::Frames).0, frames);
    assert_eq!(read(&bytes, &cuts, Look::Marks).0.len(), 3);
}

#[test]
fn answers_end_by_length_by_chunk_or_by_closing() {
    let sized = b"HTTP/1.1 201 Created\r\nContent-Length: 8\r\n\r\n{\"id\":1}";
    let (_, mut wire) = read(sized, &[10, 50], Look::Nothing);
    assert!(wire.is_done() && wire.may_end() && !wire.closes());
    wire.next();
    assert_eq!((wire.is_done(), wire.status()), (false, None));
    wire.feed(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n", &mut |_| {}).unwrap();
    assert!(wire.is_done() && wire.closes());
    let open = format!("HTTP/1.0 200 OK\r\n\r\nid: 1\ndata: {}\n\n", text(mark(0)));
    let (frames, wire) = read(open.as_bytes(), &[], Look::Frames);
    assert!(frames.len() == 1 && wire.may_end() && !wire.is_done());
    assert!(!read(&stream(&[]).0[..300], &[], Look::Frames).1.may_end(), "cut off amid the chunks");
}

#[test]
fn refusals_say_what_the_server_said() {
    let problem = r#"{"status":400,"code":"bad_topic","detail":"no","title":"t"}"#;
    let refused = |bytes: &str| read(bytes.as_bytes(), &[], Look::Frames).1.refusal().unwrap();
    let length = problem.len();
    assert_eq!(
        refused(&format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {length}\r\n\r\n{problem}")),
        "400 no (bad_topic)"
    );
    assert_eq!(refused("HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnone\n"), "404 none");
    assert_eq!(
        refused(&format!("HTTP/1.1 200 OK\r\n\r\nid: 1\nevent: tidelog.error\ndata: {problem}\n\n")),
        "200 no (bad_topic)"
    );
}

#[test]
fn what_is_no_http_is_said_to_be_none() {
    let fails = |bytes: &str| Wire::new(Look::Frames).feed(bytes.as_bytes(), &mut |_| {}).unwrap_err();
    assert_eq!(fails("SSH-2.0\r\n\r\n"), Malformed::Head);
    assert_eq!(fails(&format!("{HEAD}xyz\r\n")), Malformed::Chunk);
    assert_eq!(fails(&format!("{HEAD}1\r\nxyz\r\n")), Malformed::Chunk);
    assert_eq!(fails(&format!("{HEAD}ffffffffffffffffff\r\n")), Malformed::Chunk);
}
