//! Messages: rings, orders of completion, tags.

use std::sync::Arc;

use super::collectives::equal;
use super::values::{each_kind, input, long, Value, LENGTHS};
use super::{same, Bench, Check, Outcome, Wrong};
use crate::{Communicator, OwnedBuffer, Rank, Request, Tag};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "send and receive around a ring", body: |c| each_kind!(ring, c) },
    Check { name: "started messages around a ring", body: |c| each_kind!(started_ring, c) },
    Check { name: "requests completed out of order", body: out_of_order },
    Check { name: "tags keep messages apart", body: tags },
    Check { name: "polling ends", body: polling },
    Check { name: "a blocking receive of a started send", body: mixed },
    Check { name: "receives of several tags, completed in any order", body: any_order },
    Check { name: "many megabytes under way in both directions", body: crowd },
    Check { name: "a message that its ends poll for while they compute", body: computing },
];

pub(super) fn next(comm: &dyn Communicator) -> Rank {
    Rank((comm.rank().0 + 1) % comm.size())
}

pub(super) fn previous(comm: &dyn Communicator) -> Rank {
    Rank((comm.rank().0 + comm.size() - 1) % comm.size())
}

fn ring<T: Value>(comm: &Bench) -> Outcome {
    if comm.size() == 1 {
        return Ok(());
    }
    for len in LENGTHS.into_iter().chain([long::<T>()]) {
        let (send, mut out) = (comm.array(input::<T>(comm.rank().0, len))?, comm.array(vec![T::of(99.0); len])?);
        // Rank 0 receives first, so that blocking sends need not be buffered.
        if comm.rank() == Rank(0) {
            comm.receive(out.buffer_mut()?, previous(&***comm), Tag(7))?;
            comm.send(send.buffer()?, next(&***comm), Tag(7))?;
        } else {
            comm.send(send.buffer()?, next(&***comm), Tag(7))?;
            comm.receive(out.buffer_mut()?, previous(&***comm), Tag(7))?;
        }
        equal(format!("{len} {:?}", T::KIND), &input(previous(&***comm).0, len), &comm.look(&out)?)?;
    }
    Ok(())
}

fn started_ring<T: Value>(comm: &Bench) -> Outcome {
    for len in LENGTHS.into_iter().chain([long::<T>()]) {
        let receive = comm.start_receive(comm.owned(vec![T::of(99.0); len])?, previous(&***comm), Tag(0))?;
        let send = comm.start_send(comm.owned(input::<T>(comm.rank().0, len))?, next(&***comm), Tag(0))?;
        equal(format!("{len} {:?}", T::KIND), &input::<T>(previous(&***comm).0, len), &comm.wait(receive)?)?;
        equal("the sent buffer".into(), &input::<T>(comm.rank().0, len), &comm.wait(send)?)?;
    }
    Ok(())
}

fn wait_backwards(mut requests: Vec<Request>) -> Result<Vec<OwnedBuffer>, Wrong> {
    let mut buffers = Vec::new();
    while let Some(request) = requests.pop() {
        buffers.push(request.wait()?);
    }
    buffers.reverse();
    Ok(buffers)
}

fn out_of_order(comm: &Bench) -> Outcome {
    // Same channel and tag: the k-th receive gets the k-th message, whatever is waited for first.
    let lengths = [3, 70_000, 1, 0, 2000];
    let mut receives = Vec::new();
    for len in lengths {
        receives.push(comm.start_receive(comm.owned(vec![0i32; len])?, previous(&***comm), Tag(3))?);
    }
    let mut sends = Vec::new();
    for (k, len) in lengths.into_iter().enumerate() {
        let content: Vec<i32> = (0..len as i32).map(|i| 1000 * k as i32 + i).collect();
        sends.push(comm.start_send(comm.owned(content)?, next(&***comm), Tag(3))?);
    }
    for (k, buffer) in wait_backwards(receives)?.into_iter().enumerate() {
        let expected: Vec<i32> = (0..lengths[k] as i32).map(|i| 1000 * k as i32 + i).collect();
        equal(format!("message {k}"), &expected, &comm.read(buffer.as_buffer())?)?;
    }
    wait_backwards(sends).map(drop)
}

fn tags(comm: &Bench) -> Outcome {
    let late = comm.start_receive(comm.owned(vec![0i64; 1])?, previous(&***comm), Tag(u16::MAX))?;
    let early = comm.start_receive(comm.owned(vec![0i64; 1])?, previous(&***comm), Tag(0))?;
    let sends = [
        comm.start_send(comm.owned(vec![10i64])?, next(&***comm), Tag(0))?,
        comm.start_send(comm.owned(vec![20i64])?, next(&***comm), Tag(u16::MAX))?,
    ];
    same("the largest tag", vec![20i64], comm.wait(late)?)?;
    same("tag 0", vec![10i64], comm.wait(early)?)?;
    sends.into_iter().try_for_each(|send| send.wait().map(drop))?;
    Ok(())
}

fn polling(comm: &Bench) -> Outcome {
    let mut receive = comm.start_receive(comm.owned(vec![0f64; 9000])?, previous(&***comm), Tag(1))?;
    let mut send = comm.start_send(comm.owned(vec![4f64; 9000])?, next(&***comm), Tag(1))?;
    while !(receive.is_complete()? & send.is_complete()?) {
        std::thread::yield_now();
    }
    same("after polling", vec![4f64; 9000], comm.wait(receive)?)?;
    send.wait()?;
    Ok(())
}

fn mixed(comm: &Bench) -> Outcome {
    let send = comm.start_send(comm.owned(vec![8u8; 20_000])?, next(&***comm), Tag(2))?;
    let mut out = comm.array(vec![0u8; 20_000])?;
    comm.receive(out.buffer_mut()?, previous(&***comm), Tag(2))?;
    same("received", vec![8u8; 20_000], comm.look(&out)?)?;
    send.wait()?;
    Ok(())
}

/// The rank that this one is paired with: itself, where it is left over.
pub(super) fn partner(comm: &dyn Communicator) -> Rank {
    let other = comm.rank().0 ^ 1;
    Rank(if other < comm.size() { other } else { comm.rank().0 })
}

fn any_order(comm: &Bench) -> Outcome {
    const TAGS: usize = 6;
    let peer = partner(&***comm);
    // From nothing to several chunks, and with every other neighbour.
    let lengths = [5000, long::<f32>(), 0, 3, long::<f32>() / 2, 257];
    let content = |from: Rank, tag: usize| input::<f32>(10 * from.0 + tag, lengths[tag]);
    // Steps that meet every tag once: forwards, and two orders that jump; sends go the other way round.
    for (first, step) in [(0, 1), (5, 5), (2, 7)] {
        let order = || (0..TAGS).map(move |k| (first + k * step) % TAGS);
        let mut receives: Vec<Option<Request>> = Vec::new();
        for (tag, len) in lengths.into_iter().enumerate() {
            receives.push(Some(comm.start_receive(comm.owned(vec![99f32; len])?, peer, Tag(tag as u16))?));
        }
        let mut sends = Vec::new();
        for tag in order().collect::<Vec<_>>().into_iter().rev() {
            sends.push(comm.start_send(comm.owned(content(comm.rank(), tag))?, peer, Tag(tag as u16))?);
        }
        for tag in order() {
            let Some(request) = receives[tag].take() else { return same("a receive of each tag", true, false) };
            equal(format!("tag {tag}"), &content(peer, tag), &comm.wait(request)?)?;
        }
        wait_backwards(sends)?;
    }
    Ok(())
}

fn crowd(comm: &Bench) -> Outcome {
    const MESSAGES: u16 = 64;
    const LEN: usize = 1 << 20;
    // One pair is enough, and does not fill the memory of a machine with many ranks.
    if comm.rank() > Rank(1) {
        return Ok(());
    }
    let peer = partner(&***comm);
    let byte = |from: Rank, k: u16| (k as u8).wrapping_mul(3) + from.0 as u8;
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    // All sends first: none may wait for its receive to be started.
    for k in 0..MESSAGES {
        sends.push(comm.start_send(comm.owned(vec![byte(comm.rank(), k); LEN])?, peer, Tag(k % 4))?);
    }
    for k in 0..MESSAGES {
        receives.push(comm.start_receive(comm.owned(vec![0u8; LEN])?, peer, Tag(k % 4))?);
    }
    wait_backwards(sends)?;
    for (k, buffer) in (0..MESSAGES).zip(wait_backwards(receives)?) {
        equal(format!("message {k}"), &vec![byte(peer, k); LEN], &comm.read(buffer.as_buffer())?)?;
    }
    Ok(())
}

fn computing(comm: &Bench) -> Outcome {
    let (peer, len) = (partner(&***comm), long::<f64>());
    let send = comm.start_send(comm.owned(input::<f64>(comm.rank().0, len))?, peer, Tag(5))?;
    let mut receive = comm.start_receive(comm.owned(vec![0f64; len])?, peer, Tag(5))?;
    // Something to compute between the polls, of one of the two requests only: a poll moves all.
    let mut x = 1.0f64;
    while !receive.is_complete()? {
        x = std::hint::black_box((0..10_000).fold(x, |x, _| (x + 2.0 / x) / 2.0));
    }
    equal("the message".into(), &input::<f64>(peer.0, len), &comm.wait(receive)?)?;
    send.wait()?;
    same("what was computed", true, (x * x - 2.0).abs() < 1e-9 || x == 1.0)
}

/// A message longer than a C int counts.
pub(super) fn beyond_c_int(comm: &Arc<dyn Communicator>) -> Outcome {
    let len = (1usize << 31) + 5;
    let mut content = vec![0u8; len];
    content[len - 1] = 7 + comm.rank().0 as u8;
    let receive = comm.start_receive(vec![0u8; len].into(), previous(&**comm), Tag(0))?;
    let send = comm.start_send(content.into(), next(&**comm), Tag(0))?;
    let received = receive.wait()?;
    same("the last byte", 7 + previous(&**comm).0 as u8, received.to_vec::<u8>()[len - 1])?;
    send.wait()?;
    Ok(())
}
