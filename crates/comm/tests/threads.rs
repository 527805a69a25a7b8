//! What only `Threads` promises: disagreement is an error on every rank, and nobody waits for a rank that is gone.

use std::sync::Arc;

use mp_comm::threads::{run, try_run, Failure, Threads, EAGER_BYTES};
use mp_comm::{Buffer, BufferMut, Call, Communicator, Error, Rank, ReduceOp, Result, Tag};

/// Runs `body` on `n` ranks and returns the errors that all of them must end with.
fn errors(n: usize, body: impl Fn(&dyn Communicator) -> Result<()> + Sync) -> Vec<Error> {
    run(n, |comm| Ok::<_, Error>(body(&*comm).expect_err("the call should fail")))
}

fn all_mismatch(errors: &[Error]) {
    assert!(errors.iter().all(|e| matches!(e, Error::Mismatch { .. })), "{errors:?}");
}

#[test]
fn lengths_kinds_reductions_roots_and_calls_must_agree() {
    all_mismatch(&errors(3, |c| c.all_reduce(BufferMut::new(&mut vec![0f32; c.rank().0 % 2]), ReduceOp::Sum)));
    all_mismatch(&errors(3, |c| {
        let op = if c.rank().0 == 1 { ReduceOp::Max } else { ReduceOp::Sum };
        c.all_reduce(BufferMut::new(&mut [1i64]), op)
    }));
    all_mismatch(&errors(2, |c| match c.rank().0 {
        0 => c.all_reduce(BufferMut::new(&mut [1i32]), ReduceOp::Sum),
        _ => c.all_reduce(BufferMut::new(&mut [1f32]), ReduceOp::Sum),
    }));
    all_mismatch(&errors(4, |c| c.broadcast(BufferMut::new(&mut [1u8]), Rank(c.rank().0 / 2))));
    all_mismatch(&errors(4, |c| if c.rank().0 == 3 { c.barrier() } else { c.split(None, 0, "x").map(drop) }));
    all_mismatch(&errors(2, |c| match c.rank().0 {
        0 => c.all_reduce(BufferMut::new(&mut [1f32]), ReduceOp::Sum),
        _ => c.start_all_reduce(vec![1f32].into(), ReduceOp::Sum)?.wait().map(drop),
    }));
    all_mismatch(&errors(2, |c| {
        let counts = [1, 2 + c.rank().0];
        let (send, mut receive) = (vec![0u8; counts[0] + counts[1]], vec![0u8; counts[0] + counts[1]]);
        c.all_to_all_v(Buffer::new(&send), &counts, BufferMut::new(&mut receive), &counts)
    }));
}

#[test]
fn the_ends_of_a_pair_must_agree() {
    let pair = |c: &dyn Communicator, (sent, to): (usize, usize), (received, from): (usize, usize), tag| {
        let (send, receive) = (vec![1f32; sent].into(), vec![0f32; received].into());
        c.start_send_receive(send, Rank(to), receive, Rank(from), Tag(tag))?.wait().map(drop)
    };
    let told = errors(3, |c| {
        let (next, before) = ((c.rank().0 + 1) % 3, (c.rank().0 + 2) % 3);
        pair(c, (4, next), (4 + c.rank().0 / 2, before), 0)
    });
    for error in told {
        let expected = "group world: rank 1 called start_send_receive of 4 F32 to rank 2 while rank 2 called \
                        start_send_receive of 5 F32 from rank 1";
        assert_eq!(error.to_string(), expected);
    }
    // One rank turns the other way round.
    all_mismatch(&errors(3, |c| {
        let (next, before) = ((c.rank().0 + 1) % 3, (c.rank().0 + 2) % 3);
        if c.rank().0 == 1 {
            pair(c, (1, before), (1, next), 0)
        } else {
            pair(c, (1, next), (1, before), 0)
        }
    }));
    all_mismatch(&errors(2, |c| {
        let (peer, (send, receive)) = (Rank(1 - c.rank().0), (vec![1f32].into(), vec![0i32].into()));
        c.start_send_receive(send, peer, receive, peer, Tag(0))?.wait().map(drop)
    }));
    // Ranks that start two of them, or one and a sum, in different orders.
    let told = errors(2, |c| pair(c, (1, 1 - c.rank().0), (1, 1 - c.rank().0), c.rank().0 as u16));
    for error in told {
        let text = error.to_string();
        assert!(text.contains("start_send_receive with tag 0") && text.contains("with tag 1"), "{text}");
    }
    all_mismatch(&errors(2, |c| match c.rank().0 {
        0 => pair(c, (1, 1), (1, 1), 0),
        _ => c.start_all_reduce(vec![1f32].into(), ReduceOp::Sum)?.wait().map(drop),
    }));
}

#[test]
fn a_pair_that_is_refused_on_one_rank_is_told_to_the_others() {
    let errors = errors(3, |c| {
        let (rank, next) = (c.rank().0, Rank((c.rank().0 + 1) % 3));
        let from = if rank == 2 { Rank(2) } else { Rank((rank + 2) % 3) };
        c.start_send_receive(vec![1u8].into(), next, vec![0u8].into(), from, Tag(0))?.wait().map(drop)
    });
    let expected =
        "start_send_receive in group world: rank 2 sends to rank 0 and receives from rank 2: a rank that does \
                    one with itself does both";
    assert_eq!(errors[2].to_string(), expected);
    for error in &errors[..2] {
        assert!(matches!(error, Error::PeerRefused { peer: Rank(2), .. }), "{errors:?}");
    }
}

#[test]
fn a_group_goes_on_after_a_disagreement() {
    run(3, |c| {
        c.all_reduce(BufferMut::new(&mut vec![0f32; c.rank().0]), ReduceOp::Sum).expect_err("lengths differ");
        let mut x = [1i32];
        c.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum)?;
        assert_eq!(x, [3]);
        Ok::<_, Error>(())
    });
}

#[test]
fn a_refused_rank_tells_its_peers() {
    let errors = errors(3, |c| {
        let mut receive = vec![0f32; if c.rank().0 == 2 { 7 } else { 3 }];
        c.all_gather(Buffer::new(&[1f32]), BufferMut::new(&mut receive))
    });
    assert!(matches!(errors[2], Error::Length { call: Call::AllGather, expected: 3, found: 7, .. }), "{errors:?}");
    for error in &errors[..2] {
        assert!(matches!(error, Error::PeerRefused { peer: Rank(2), .. }), "{errors:?}");
    }
}

#[test]
fn a_panic_is_reported_with_its_rank_and_frees_the_peers() {
    let outcomes = try_run(4, |c| {
        if c.rank() == Rank(2) {
            panic!("on purpose");
        }
        c.all_reduce(BufferMut::new(&mut [1f32; 100]), ReduceOp::Sum)
    });
    for (rank, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Err(Failure::Panic(message)) => assert!(rank == 2 && message == "on purpose"),
            Err(Failure::Error(Error::PeerGone { call: Call::AllReduce, peer: Rank(2), .. })) => assert!(rank != 2),
            other => panic!("rank {rank}: {other:?}"),
        }
    }
}

#[test]
#[should_panic(expected = "rank 1 of 2: panicked: on purpose")]
fn run_names_the_rank() {
    run(2, |c| if c.rank() == Rank(1) { panic!("on purpose") } else { c.barrier() });
}

/// Calls `body` on rank 0 after rank 1 of two dropped its handle, and returns the error.
fn alone(body: impl Fn(&dyn Communicator) -> Result<()> + Sync) -> Error {
    let mut group = Threads::group(2, "pair");
    let (second, first) = (group.pop(), group.pop().expect("two handles"));
    std::thread::scope(|scope| {
        // Sometimes before and sometimes while rank 0 waits: both must end.
        scope.spawn(move || drop(second));
        body(&*first).expect_err("the peer is gone")
    })
}

#[test]
fn whoever_waits_for_a_dropped_handle_gets_an_error() {
    type Body = fn(&dyn Communicator) -> Result<()>;
    let bodies: [Body; 9] = [
        |c| c.barrier(),
        |c| c.broadcast(BufferMut::new(&mut [0f64; 9]), Rank(1)),
        |c| c.split(Some(0), 0, "half").map(drop),
        |c| c.receive(BufferMut::new(&mut [0u8]), Rank(1), Tag(0)),
        |c| c.send(Buffer::new(&[0u8; EAGER_BYTES + 1]), Rank(1), Tag(0)),
        |c| c.start_send(vec![1f32].into(), Rank(1), Tag(0))?.wait().map(drop),
        |c| c.start_receive(vec![1f32].into(), Rank(1), Tag(0))?.wait().map(drop),
        |c| c.start_all_gather(vec![1f32].into(), vec![0f32; 2].into())?.wait().map(drop),
        |c| c.start_send_receive(vec![1f32].into(), Rank(1), vec![0f32].into(), Rank(1), Tag(0))?.wait().map(drop),
    ];
    for body in bodies {
        for _ in 0..50 {
            assert!(matches!(alone(body), Error::PeerGone { peer: Rank(1), .. }));
        }
    }
}

#[test]
fn a_message_sent_before_the_end_still_arrives() {
    run(2, |c| {
        if c.rank() == Rank(0) {
            return c.send(Buffer::new(&[7u8]), Rank(1), Tag(3));
        }
        let mut x = [0u8];
        c.receive(BufferMut::new(&mut x), Rank(0), Tag(3))?;
        assert_eq!(x, [7]);
        Ok(())
    });
}

#[test]
fn both_ends_hear_of_a_message_of_another_length() {
    let errors = errors(2, |c| match c.rank().0 {
        0 => c.send(Buffer::new(&vec![1f32; EAGER_BYTES]), Rank(1), Tag(0)),
        _ => c.receive(BufferMut::new(&mut [0f32; 3]), Rank(0), Tag(0)),
    });
    assert!(errors.iter().all(|e| matches!(e, Error::Length { expected: 3, found: EAGER_BYTES, .. })), "{errors:?}");
}

#[test]
fn a_request_keeps_its_rank_in_the_group() {
    let mut group = Threads::group(2, "pair");
    let (second, first) = (group.pop().expect("two handles"), group.pop().expect("two handles"));
    let request = second.start_receive(vec![0i64].into(), Rank(0), Tag(1)).expect("a valid receive");
    drop(second);
    std::thread::scope(|scope| {
        scope.spawn(move || first.send(Buffer::new(&[5i64]), Rank(1), Tag(1)));
        assert_eq!(request.wait().expect("a message").to_vec::<i64>(), [5]);
    });
}

#[test]
fn dropped_requests_disturb_nobody() {
    run(2, |c| {
        let peer = Rank(1 - c.rank().0);
        drop(c.start_receive(vec![0u8; 2].into(), peer, Tag(0))?);
        drop(c.start_send(vec![1u8; 2].into(), peer, Tag(0))?);
        drop(c.start_all_reduce(vec![1f32].into(), ReduceOp::Sum)?);
        let sent = c.start_send(vec![9u8].into(), peer, Tag(0))?;
        let mut x = [0u8];
        c.receive(BufferMut::new(&mut x), peer, Tag(0))?;
        assert_eq!((x, sent.wait()?.to_vec::<u8>()), ([9], vec![9]));
        c.barrier()
    });
}

#[test]
fn sums_are_the_same_at_every_run() {
    let sum = || {
        run(4, |c| {
            let mut x: Vec<f32> = (0..1000).map(|i| 1.0 / (1 + i + 7919 * c.rank().0) as f32).collect();
            c.all_reduce(BufferMut::new(&mut x), ReduceOp::Sum)?;
            Ok::<_, Error>(x)
        })
    };
    let first = sum();
    assert!(first.iter().all(|x| *x == first[0]));
    (0..10).for_each(|_| assert_eq!(sum(), first));
}

#[test]
fn handles_move_between_threads() {
    fn is_shareable<T: Send + Sync>(_: &T) {}
    let group: Vec<Arc<dyn Communicator>> = Threads::group(2, "pair");
    is_shareable(&group);
}
