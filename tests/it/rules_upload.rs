//! Uploads by every form that the protocol has, each step by another engine than the one before.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use berth::{
    error::Code,
    oci::{Algorithm, Digest},
    registry::Options,
    upload::{Incoming, Progress, UploadId},
};
use bytes::Bytes;
use futures_util::stream;

use crate::{
    rules_bench::{self as bench, Bench, bytes_of, code, kinds, on, sha256},
    storage::pattern,
};

async fn start(bench: &Bench, name: &str) -> (UploadId, Progress) {
    bench.repo(name).await.start_upload("me")
}

/// A body that breaks off after `bytes`.
fn broken(bytes: Bytes) -> Incoming {
    let length = Some(bytes.len() as u64 + 1);
    Incoming { stream: Box::pin(stream::iter([Ok(bytes), Err("reset".to_owned())])), length }
}

/// A body in small pieces that doesn't say how long it is.
fn pieces(bytes: &Bytes) -> Incoming {
    let pieces: Vec<_> = bytes.chunks(7_777).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Incoming { stream: Box::pin(stream::iter(pieces)), length: None }
}

#[derive(Clone, Copy, Debug)]
enum Carry {
    /// The proof of the last answer.
    Proof,
    /// None.
    Nothing,
    /// The first one, for ever.
    Old,
    /// What `upload_progress` answered.
    Asked,
}

async fn in_pieces(bench: &Bench, name: &str, sizes: &[usize], last: usize, carry: Carry, algorithm: Algorithm) {
    let whole = pattern(sizes.iter().sum::<usize>() + last);
    let digest = Digest::of(algorithm, &whole);
    let (id, first) = start(bench, name).await;
    let mut at = 0;
    let mut progress = first.clone();
    for size in sizes {
        let repository = bench.repo(name).await;
        let proof = match carry {
            Carry::Proof => Some(progress.proof.clone()),
            Carry::Nothing => None,
            Carry::Old => Some(first.proof.clone()),
            Carry::Asked => Some(repository.upload_progress(&id).await.unwrap().proof),
        };
        let body = pieces(&whole.slice(at..at + size));
        progress =
            bench.repo(name).await.append(&id, proof.as_ref(), Some(at as u64), Algorithm::Sha256, body).await.unwrap();
        at += size;
        assert_eq!(progress.offset, at as u64);
        assert_eq!(bench.repo(name).await.upload_progress(&id).await.unwrap(), progress);
    }
    let body = Incoming::of(whole.slice(at..));
    let proof = matches!(carry, Carry::Proof).then_some(&progress.proof);
    let blob = bench.repo(name).await.finish(&id, proof, None, &digest, body).await.unwrap();
    assert_eq!(bytes_of(&blob).await.unwrap(), whole);
    assert_eq!(bench.read(name, &digest).await.unwrap(), whole);
    let again = bench.repo(name).await.finish(&id, proof, None, &digest, Incoming::empty()).await.unwrap();
    assert_eq!(again.size(), blob.size());
}

/// What a quiet bucket holds: a link and data for each blob, and nothing else.
async fn assert_no_garbage(bench: &Bench, links: usize, data: usize) {
    bench.work().await;
    let kinds = kinds(&bench.keys().await);
    assert_eq!(kinds.get("link").copied().unwrap_or(0), links, "{:?}", bench.keys().await);
    assert_eq!(kinds.get("data").copied().unwrap_or(0), data, "{:?}", bench.keys().await);
    assert!(bench.members(|names| names.attempts()).await.is_empty());
    assert!(bench.members(|names| names.trash()).await.is_empty());
}

async fn every_size(bench: &Bench, around: &[usize]) {
    let p = bench.part;
    let mut number = 0;
    for carry in [Carry::Proof, Carry::Nothing, Carry::Old, Carry::Asked] {
        for &first in around {
            for (sizes, last) in [
                (vec![], first),
                (vec![first], 0),
                (vec![first], 1),
                (vec![first, 1], p),
                (vec![1, first], 0),
                (vec![first, first, 5], 0),
            ] {
                number += 1;
                in_pieces(bench, &format!("sizes/{number}"), &sizes, last, carry, Algorithm::Sha256).await;
            }
        }
    }
    println!("{number} uploads");
}

#[tokio::test]
async fn a_blob_is_what_was_sent_in_pieces_of_any_size() {
    let bench = bench::in_directory(bench::options()).await;
    let p = bench.part;
    every_size(&bench, &[0, 1, p - 1, p, p + 1, 2 * p - 1, 2 * p, 2 * p + 1, 5 * p + 3]).await;
    bench.work().await;
    assert!(bench.members(|names| names.attempts()).await.is_empty());
    assert!(bench.members(|names| names.trash()).await.is_empty());
}

#[tokio::test]
async fn a_blob_is_what_was_sent_to_redis_and_s3() {
    let bench = bench::remote(bench::options()).await;
    let p = bench.part;
    every_size(&bench, &[3]).await;
    in_pieces(&bench, "large", &[p + 1, p], 2 * p, Carry::Nothing, Algorithm::Sha256).await;
    in_pieces(&bench, "larger", &[p / 2, 2 * p], 0, Carry::Proof, Algorithm::Sha512).await;
}

#[tokio::test]
async fn an_algorithm_that_only_the_closing_request_names_is_compared() {
    let bench = bench::local(bench::options()).await;
    let p = bench.part;
    for (number, sizes) in [vec![], vec![10], vec![p], vec![p + 1], vec![3 * p, 7]].iter().enumerate() {
        in_pieces(&bench, &format!("late/{number}"), sizes, 9, Carry::Proof, Algorithm::Sha512).await;
        in_pieces(&bench, &format!("later/{number}"), sizes, 0, Carry::Nothing, Algorithm::Sha512).await;
    }
    let (id, _) = start(&bench, "wrong").await;
    bench.repo("wrong").await.append(&id, None, None, Algorithm::Sha256, Incoming::of("some")).await.unwrap();
    let wrong = Digest::of(Algorithm::Sha512, b"other");
    let refused = bench.repo("wrong").await.finish(&id, None, None, &wrong, Incoming::empty()).await;
    assert_eq!(code(refused), Code::DigestInvalid);
    assert_eq!(code(bench.read("wrong", &wrong).await), Code::BlobUnknown);
}

#[tokio::test]
async fn an_empty_blob_and_an_empty_patch_are_good() {
    let bench = bench::local(bench::options()).await;
    let empty = sha256(b"");
    in_pieces(&bench, "app", &[0, 0], 0, Carry::Proof, Algorithm::Sha256).await;
    assert_eq!(bench.read("app", &empty).await.unwrap(), "");
    in_pieces(&bench, "other", &[], 0, Carry::Nothing, Algorithm::Sha256).await;
    assert_eq!(bench.read("other", &empty).await.unwrap(), "");
    assert_no_garbage(&bench, 2, 1).await;
}

#[tokio::test]
async fn a_wrong_digest_ends_the_upload_and_leaves_nothing() {
    let bench = bench::local(bench::options()).await;
    for size in [0, 10, bench.part, 3 * bench.part] {
        for patched in [false, true] {
            let (id, progress) = start(&bench, "app").await;
            let mut proof = progress.proof;
            let mut body = Incoming::of(pattern(size));
            if patched {
                proof = bench
                    .repo("app")
                    .await
                    .append(&id, Some(&proof), None, Algorithm::Sha256, body)
                    .await
                    .unwrap()
                    .proof;
                body = Incoming::empty();
            }
            let wrong = sha256(b"something else");
            let refused = bench.repo("app").await.finish(&id, Some(&proof), None, &wrong, body).await;
            assert_eq!(code(refused), Code::DigestInvalid);
            let again = bench.repo("app").await.finish(&id, Some(&proof), None, &wrong, Incoming::empty()).await;
            assert_eq!(code(again), Code::BlobUploadUnknown);
            assert_eq!(code(bench.repo("app").await.upload_progress(&id).await), Code::BlobUploadUnknown);
            assert_eq!(code(bench.read("app", &wrong).await), Code::BlobUnknown);
        }
    }
    assert_no_garbage(&bench, 0, 0).await;
}

#[tokio::test]
async fn a_patch_that_breaks_off_is_kept_as_far_as_it_came() {
    let bench = bench::local(bench::options()).await;
    let p = bench.part;
    for came in [0, 1, p - 1, p, p + 1, 3 * p + 5] {
        let whole = pattern(came + 100);
        let (id, progress) = start(&bench, "app").await;
        let body = broken(whole.slice(..came));
        let refused = bench.repo("app").await.append(&id, Some(&progress.proof), None, Algorithm::Sha256, body).await;
        assert_eq!(code(refused), Code::SizeInvalid);
        let progress = bench.repo("app").await.upload_progress(&id).await.unwrap();
        assert_eq!(progress.offset, came as u64);
        let wrong = bench
            .repo("app")
            .await
            .append(&id, None, Some(came as u64 + 1), Algorithm::Sha256, Incoming::of("x"))
            .await;
        assert_eq!(code(wrong), Code::RangeInvalid);
        let body = Incoming::of(whole.slice(came..));
        let digest = sha256(&whole);
        bench.repo("app").await.finish(&id, Some(&progress.proof), Some(came as u64), &digest, body).await.unwrap();
        assert_eq!(bench.read("app", &digest).await.unwrap(), whole);
    }
    assert_no_garbage(&bench, 6, 6).await;
}

#[tokio::test]
async fn a_closing_request_that_breaks_off_can_be_sent_again() {
    let bench = bench::local(bench::options()).await;
    let p = bench.part;
    for came in [0, 1, p, 3 * p + 5] {
        let whole = pattern(came + 100);
        let digest = sha256(&whole);
        let (id, progress) = start(&bench, "app").await;
        for patched in [0, 50] {
            if patched > 0 {
                let body = Incoming::of(whole.slice(..patched));
                bench.repo("app").await.append(&id, None, None, Algorithm::Sha256, body).await.unwrap();
            }
            let body = broken(whole.slice(patched..(came + 50).max(patched)));
            let refused = bench.repo("app").await.finish(&id, Some(&progress.proof), None, &digest, body).await;
            assert_eq!(code(refused), Code::SizeInvalid);
            assert_eq!(bench.repo("app").await.upload_progress(&id).await.unwrap().offset, patched as u64);
        }
        let body = Incoming::of(whole.slice(50..));
        bench.repo("app").await.finish(&id, None, Some(50), &digest, body).await.unwrap();
        assert_eq!(bench.read("app", &digest).await.unwrap(), whole);
    }
    assert_no_garbage(&bench, 4, 4).await;
}

#[tokio::test]
async fn what_was_cancelled_is_over_and_gone() {
    let bench = bench::local(bench::options()).await;
    for size in [0, 5, 3 * bench.part] {
        let (id, progress) = start(&bench, "app").await;
        let body = Incoming::of(pattern(size));
        bench.repo("app").await.append(&id, Some(&progress.proof), None, Algorithm::Sha256, body).await.unwrap();
        bench.repo("app").await.cancel_upload(&id).await.unwrap();
        assert_eq!(code(bench.repo("app").await.cancel_upload(&id).await), Code::BlobUploadUnknown);
        let closing = bench.repo("app").await.finish(&id, None, None, &sha256(&pattern(size)), Incoming::empty()).await;
        assert_eq!(code(closing), Code::BlobUploadUnknown);
        let more = bench
            .repo("app")
            .await
            .append(&id, Some(&progress.proof), None, Algorithm::Sha256, Incoming::of("x"))
            .await;
        assert_eq!(code(more), Code::BlobUploadUnknown);
    }
    assert_no_garbage(&bench, 0, 0).await;
}

#[tokio::test]
async fn an_upload_is_its_repositorys_and_its_subjects() {
    let bench = bench::local(bench::options()).await;
    let (id, _) = start(&bench, "app").await;
    let text = id.to_string();
    assert!(bench.repo("app").await.upload_id(&text, "me").is_ok());
    assert_eq!(code(bench.repo("app").await.upload_id(&text, "you")), Code::BlobUploadUnknown);
    assert_eq!(code(bench.repo("app/b").await.upload_id(&text, "me")), Code::BlobUploadUnknown);
}

#[tokio::test]
async fn a_blob_that_is_too_large_is_refused_by_every_form() {
    for most in [10, bench::PART as u64, 3 * bench::PART as u64 + 1] {
        let bench = bench::local(Options { blob_size: most, ..bench::options() }).await;
        let (good, bad) = (pattern(most as usize), pattern(most as usize + 1));
        let (id, progress) = start(&bench, "app").await;
        let patch = bench
            .repo("app")
            .await
            .append(&id, Some(&progress.proof), None, Algorithm::Sha256, Incoming::of(bad.clone()))
            .await;
        assert_eq!(code(patch), Code::TooLarge);
        let (id, progress) = start(&bench, "app").await;
        let put = bench
            .repo("app")
            .await
            .finish(&id, Some(&progress.proof), None, &sha256(&bad), Incoming::of(bad.clone()))
            .await;
        assert_eq!(code(put), Code::TooLarge);
        let (id, _) = start(&bench, "app").await;
        bench.repo("app").await.append(&id, None, None, Algorithm::Sha256, Incoming::of(good.clone())).await.unwrap();
        let more = bench.repo("app").await.append(&id, None, None, Algorithm::Sha256, Incoming::of("x")).await;
        assert_eq!(code(more), Code::TooLarge);
        bench.repo("app").await.finish(&id, None, None, &sha256(&good), Incoming::empty()).await.unwrap();
        assert_eq!(bench.read("app", &sha256(&good)).await.unwrap(), good);
        assert_no_garbage(&bench, 1, 1).await;
    }
}

#[tokio::test]
async fn of_two_requests_at_once_one_goes_on_and_the_bytes_stay_right() {
    let bench = bench::local(bench::options()).await;
    let p = bench.part;
    for (round, size) in [10, p, p + 1, 4 * p].into_iter().enumerate() {
        let name = format!("race/{round}");
        let whole = pattern(2 * size);
        let (id, _) = start(&bench, &name).await;
        let (one, two) = (bench.repo(&name).await, bench.repo(&name).await);
        let half = || pieces(&whole.slice(..size));
        let (first, second) = futures_util::join!(
            one.append(&id, None, Some(0), Algorithm::Sha256, half()),
            two.append(&id, None, Some(0), Algorithm::Sha256, half())
        );
        assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
        assert!(first.is_err() || second.is_err(), "both took the same place");
        let digest = sha256(&whole);
        let rest = || Some(size as u64);
        let wrong = sha256(b"wrong");
        let (first, second, third) = futures_util::join!(
            one.finish(&id, None, rest(), &digest, pieces(&whole.slice(size..))),
            two.finish(&id, None, rest(), &digest, pieces(&whole.slice(size..))),
            two.finish(&id, None, rest(), &wrong, pieces(&whole.slice(size..)))
        );
        assert!(third.is_err());
        let acknowledged = first.is_ok() || second.is_ok();
        match bench.read(&name, &digest).await {
            Ok(read) => assert_eq!(read, whole),
            Err(error) => assert!(!acknowledged, "{error} after {first:?} {second:?}"),
        }
        assert_eq!(code(bench.read(&name, &wrong).await), Code::BlobUnknown);
        // An upload that two requests wrote to at once may have to be begun again.
        bench.blob(&name, &whole).await;
        assert_eq!(bench.read(&name, &digest).await.unwrap(), whole);
    }
    bench.work().await;
    assert!(bench.members(|names| names.attempts()).await.is_empty());
    assert!(bench.members(|names| names.trash()).await.is_empty());
}

#[tokio::test]
async fn the_same_bytes_are_stored_once_for_all_repositories() {
    let bench = bench::local(bench::options()).await;
    let p = bench.part;
    for (round, size) in [0, 10, p, 3 * p + 1].into_iter().enumerate() {
        let whole = pattern(size);
        for name in ["a", "b", "c"] {
            let name = format!("{name}/{round}");
            bench.blob(&name, &whole).await;
            // The hint is written in the background.
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        }
        let (id, _) = start(&bench, &format!("d/{round}")).await;
        let name = format!("d/{round}");
        bench.repo(&name).await.append(&id, None, None, Algorithm::Sha256, pieces(&whole)).await.unwrap();
        bench.repo(&name).await.finish(&id, None, None, &sha256(&whole), Incoming::empty()).await.unwrap();
        assert_eq!(bench.read(&name, &sha256(&whole)).await.unwrap(), whole);
        // And pushed again where it is.
        bench.blob(&name, &whole).await;
        assert_no_garbage(&bench, 4 * (round + 1), round + 1).await;
    }
}

#[tokio::test]
async fn a_stale_hint_is_not_believed() {
    let bench = bench::local(bench::options()).await;
    let digest = bench.blob("a", b"bytes").await;
    let lease = bench.a.lease().await.unwrap();
    let asks = [berth::index::Ask::Value(lease.names.hint(&digest))];
    // It is written when the push has been answered.
    let hint = loop {
        if let Some(hint) = lease.get(lease.names.hint_shard(&digest), &asks).await.unwrap().remove(0) {
            break hint;
        }
        tokio::task::yield_now().await;
    };
    // The data record goes, as after a collection; the hint stays.
    let hint: berth::index::facts::Hint = berth::index::facts::decode(&hint).unwrap();
    let writes = vec![berth::index::Write::Delete(lease.names.data(hint.data))];
    lease.commit(lease.names.home_of(hint.data), berth::index::Batch { writes, ..Default::default() }).await.unwrap();
    bench.blob("b", b"bytes").await;
    assert_eq!(bench.read("b", &digest).await.unwrap(), "bytes");
    assert_eq!(kinds(&bench.keys().await)["data"], 2);
    // From where there is a link but no data record nothing can be mounted.
    assert!(bench.repo("c").await.mount(&on(&bench.a, "a").await, &digest).await.unwrap().is_none());
    assert!(bench.repo("c").await.mount(&on(&bench.a, "b").await, &digest).await.unwrap().is_some());
    bench.work().await;
    assert!(bench.members(|names| names.attempts()).await.is_empty());
}

#[tokio::test]
async fn a_mount_moves_no_bytes_and_no_rights() {
    let bench = bench::local(bench::options()).await;
    let digest = bench.blob("a", b"bytes").await;
    // I5: the data is there, the link is not.
    assert_eq!(code(bench.read("b", &digest).await), Code::BlobUnknown);
    assert!(bench.repo("b").await.mount(&bench.repo("nothing").await, &digest).await.unwrap().is_none());
    assert_eq!(code(bench.read("b", &digest).await), Code::BlobUnknown);
    for _ in 0..2 {
        let blob = bench.repo("b").await.mount(&bench.repo("a").await, &digest).await.unwrap().unwrap();
        assert_eq!(bytes_of(&blob).await.unwrap(), "bytes");
    }
    bench.repo("a").await.delete_blob(&digest).await.unwrap();
    assert_eq!(code(bench.read("a", &digest).await), Code::BlobUnknown);
    assert_eq!(code(bench.repo("a").await.delete_blob(&digest).await), Code::BlobUnknown);
    assert_eq!(bench.read("b", &digest).await.unwrap(), "bytes");
    assert_no_garbage(&bench, 1, 1).await;
}

#[tokio::test]
async fn two_mounts_at_once_make_one_link() {
    let bench = bench::local(bench::options()).await;
    let digest = bench.blob("a", b"bytes").await;
    let source = bench.repo("a").await;
    let (one, two) = (bench.repo("b").await, bench.repo("b").await);
    let (one, two) = futures_util::join!(one.mount(&source, &digest), two.mount(&source, &digest));
    assert!(one.unwrap().is_some() && two.unwrap().is_some());
    assert_no_garbage(&bench, 2, 1).await;
}

#[tokio::test]
async fn an_upload_that_does_not_move_expires() {
    let expiry = std::time::Duration::from_secs(60);
    let bench = bench::local(Options { upload_expiry: expiry, ..bench::options() }).await;
    let (id, progress) = start(&bench, "app").await;
    bench
        .repo("app")
        .await
        .append(&id, None, None, Algorithm::Sha256, Incoming::of(pattern(3 * bench.part)))
        .await
        .unwrap();
    let (done, _) = start(&bench, "app").await;
    let digest = sha256(b"done");
    bench.repo("app").await.finish(&done, None, None, &digest, Incoming::of("done")).await.unwrap();
    bench.clock.advance(expiry + std::time::Duration::from_secs(1));
    bench.work().await;
    assert!(bench.members(|names| names.uploads()).await.is_empty());
    assert_no_garbage(&bench, 1, 1).await;
    let more =
        bench.repo("app").await.append(&id, Some(&progress.proof), None, Algorithm::Sha256, Incoming::of("x")).await;
    assert_eq!(code(more), Code::BlobUploadUnknown);
    assert_eq!(
        code(bench.repo("app").await.finish(&done, None, None, &digest, Incoming::empty()).await),
        Code::BlobUploadUnknown
    );
    assert_eq!(bench.read("app", &digest).await.unwrap(), "done");
}

/// A request may take longer than the lease, with nobody else asking for it.
#[tokio::test]
async fn a_body_that_takes_longer_than_the_lease_is_taken() {
    let mut options = bench::options();
    options.timing.lease = std::time::Duration::from_millis(100);
    let bench = bench::local(options).await;
    let (id, progress) = start(&bench, "app").await;
    let slow = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        Ok(Bytes::from_static(b"slow"))
    };
    let body = Incoming { stream: Box::pin(stream::once(slow)), length: None };
    let repository = on(&bench.a, "app").await;
    repository.finish(&id, Some(&progress.proof), None, &sha256(b"slow"), body).await.unwrap();
    assert_eq!(bench.read("app", &sha256(b"slow")).await.unwrap(), "slow");
}

/// A closing request whose body is still coming in, and what lets it go on.
fn held_back(bytes: &'static [u8]) -> (tokio::sync::oneshot::Sender<()>, Incoming) {
    let (go_on, wait) = tokio::sync::oneshot::channel();
    let body = stream::once(async move {
        drop(wait.await);
        Ok(Bytes::from_static(bytes))
    });
    (go_on, Incoming { stream: Box::pin(body), length: None })
}

#[tokio::test]
async fn an_upload_that_was_ended_meanwhile_becomes_no_blob() {
    let expiry = std::time::Duration::from_secs(60);
    for how in ["cancelled", "wrong", "expired"] {
        let bench = bench::local(Options { upload_expiry: expiry, ..bench::options() }).await;
        let digest = sha256(b"slow");
        let (id, progress) = start(&bench, "app").await;
        let repository = on(&bench.a, "app").await;
        let (go_on, body) = held_back(b"slow");
        let closing = tokio::spawn({
            let (id, digest) = (id.clone(), digest.clone());
            async move { repository.finish(&id, Some(&progress.proof), None, &digest, body).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let other = on(&bench.b, "app").await;
        match how {
            "cancelled" => other.cancel_upload(&id).await.unwrap(),
            "wrong" => {
                let refused = other.finish(&id, None, None, &sha256(b"x"), Incoming::of("y")).await;
                assert_eq!(code(refused), Code::DigestInvalid);
            }
            _ => {
                bench.clock.advance(expiry * 2);
                bench.work().await;
            }
        }
        go_on.send(()).unwrap();
        assert_eq!(code(closing.await.unwrap()), Code::BlobUploadUnknown, "{how}");
        assert_eq!(code(bench.read("app", &digest).await), Code::BlobUnknown, "{how}");
        assert_no_garbage(&bench, 0, 0).await;
    }
}

/// The record of a first chunk and its bytes are written side by side: the one may be there without the other.
#[tokio::test]
async fn bytes_that_were_never_put_aside_are_not_believed() {
    let bench = bench::local(bench::options()).await;
    let digest = sha256(b"some");
    for closing in [false, true] {
        let (id, progress) = start(&bench, "app").await;
        bench.probe.strike(crate::wrappers::How::HangBefore, |_, call| call.kind == "put");
        let repository = on(&bench.a, "app").await;
        let dying = tokio::spawn({
            let id = id.clone();
            async move { repository.append(&id, Some(&progress.proof), None, Algorithm::Sha256, Incoming::of("some")).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(bench.probe.spare().is_some());
        dying.abort();
        let repository = on(&bench.b, "app").await;
        if closing {
            let closed = repository.finish(&id, None, None, &digest, Incoming::empty()).await;
            assert_eq!(code(closed), Code::BlobUploadUnknown);
        } else {
            assert_eq!(code(repository.upload_progress(&id).await), Code::BlobUploadUnknown);
        }
        assert_eq!(code(bench.read("app", &digest).await), Code::BlobUnknown);
    }
    assert_no_garbage(&bench, 0, 0).await;
}
