//! Messages: rings, orders of completion, tags.

use std::sync::Arc;

use super::collectives::equal;
use super::values::{each_kind, input, long, Value, LENGTHS};
use super::{same, Check, Outcome, Wrong};
use crate::{Buffer, BufferMut, Communicator, OwnedBuffer, Rank, Request, Tag};

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

fn next(comm: &dyn Communicator) -> Rank {
    Rank((comm.rank().0 + 1) % comm.size())
}

fn previous(comm: &dyn Communicator) -> Rank {
    Rank((comm.rank().0 + comm.size() - 1) % comm.size())
}

fn ring<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    if comm.size() == 1 {
        return Ok(());
    }
    for len in LENGTHS.into_iter().chain([long::<T>()]) {
        let send = input::<T>(comm.rank().0, len);
        let mut out = vec![T::of(99.0); len];
        // Rank 0 receives first, so that blocking sends need not be buffered.
        if comm.rank() == Rank(0) {
            comm.receive(BufferMut::new(&mut out), previous(&**comm), Tag(7))?;
            comm.send(Buffer::new(&send), next(&**comm), Tag(7))?;
        } else {
            comm.send(Buffer::new(&send), next(&**comm), Tag(7))?;
            comm.receive(BufferMut::new(&mut out), previous(&**comm), Tag(7))?;
        }
        equal(format!("{len} {:?}", T::KIND), &input(previous(&**comm).0, len), &out)?;
    }
    Ok(())
}

fn started_ring<T: Value>(comm: &Arc<dyn Communicator>) -> Outcome {
    for len in LENGTHS.into_iter().chain([long::<T>()]) {
        let receive = comm.start_receive(vec![T::of(99.0); len].into(), previous(&**comm), Tag(0))?;
        let send = comm.start_send(input::<T>(comm.rank().0, len).into(), next(&**comm), Tag(0))?;
        equal(format!("{len} {:?}", T::KIND), &input::<T>(previous(&**comm).0, len), &receive.wait()?.to_vec())?;
        equal("the sent buffer".into(), &input::<T>(comm.rank().0, len), &send.wait()?.to_vec())?;
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

fn out_of_order(comm: &Arc<dyn Communicator>) -> Outcome {
    // Same channel and tag: the k-th receive gets the k-th message, whatever is waited for first.
    let lengths = [3, 70_000, 1, 0, 2000];
    let mut receives = Vec::new();
    for len in lengths {
        receives.push(comm.start_receive(vec![0i32; len].into(), previous(&**comm), Tag(3))?);
    }
    let mut sends = Vec::new();
    for (k, len) in lengths.into_iter().enumerate() {
        let content: Vec<i32> = (0..len as i32).map(|i| 1000 * k as i32 + i).collect();
        sends.push(comm.start_send(content.into(), next(&**comm), Tag(3))?);
    }
    for (k, buffer) in wait_backwards(receives)?.into_iter().enumerate() {
        let expected: Vec<i32> = (0..lengths[k] as i32).map(|i| 1000 * k as i32 + i).collect();
        equal(format!("message {k}"), &expected, &buffer.to_vec())?;
    }
    wait_backwards(sends).map(drop)
}

fn tags(comm: &Arc<dyn Communicator>) -> Outcome {
    let late = comm.start_receive(vec![0i64; 1].into(), previous(&**comm), Tag(u16::MAX))?;
    let early = comm.start_receive(vec![0i64; 1].into(), previous(&**comm), Tag(0))?;
    let sends = [
        comm.start_send(vec![10i64].into(), next(&**comm), Tag(0))?,
        comm.start_send(vec![20i64].into(), next(&**comm), Tag(u16::MAX))?,
    ];
    same("the largest tag", vec![20i64], late.wait()?.to_vec())?;
    same("tag 0", vec![10i64], early.wait()?.to_vec())?;
    sends.into_iter().try_for_each(|send| send.wait().map(drop))?;
    Ok(())
}

fn polling(comm: &Arc<dyn Communicator>) -> Outcome {
    let mut receive = comm.start_receive(vec![0f64; 9000].into(), previous(&**comm), Tag(1))?;
    let mut send = comm.start_send(vec![4f64; 9000].into(), next(&**comm), Tag(1))?;
    while !(receive.is_complete()? & send.is_complete()?) {
        std::thread::yield_now();
    }
    same("after polling", vec![4f64; 9000], receive.wait()?.to_vec())?;
    send.wait()?;
    Ok(())
}

fn mixed(comm: &Arc<dyn Communicator>) -> Outcome {
    let send = comm.start_send(vec![8u8; 20_000].into(), next(&**comm), Tag(2))?;
    let mut out = vec![0u8; 20_000];
    comm.receive(BufferMut::new(&mut out), previous(&**comm), Tag(2))?;
    same("received", &vec![8u8; 20_000], &out)?;
    send.wait()?;
    Ok(())
}

/// The rank that this one is paired with: itself, where it is left over.
fn partner(comm: &dyn Communicator) -> Rank {
    let other = comm.rank().0 ^ 1;
    Rank(if other < comm.size() { other } else { comm.rank().0 })
}

fn any_order(comm: &Arc<dyn Communicator>) -> Outcome {
    const TAGS: usize = 6;
    let peer = partner(&**comm);
    // From nothing to several chunks, and with every other neighbour.
    let lengths = [5000, long::<f32>(), 0, 3, long::<f32>() / 2, 257];
    let content = |from: Rank, tag: usize| input::<f32>(10 * from.0 + tag, lengths[tag]);
    // Steps that meet every tag once: forwards, and two orders that jump; sends go the other way round.
    for (first, step) in [(0, 1), (5, 5), (2, 7)] {
        let order = || (0..TAGS).map(move |k| (first + k * step) % TAGS);
        let mut receives: Vec<Option<Request>> = Vec::new();
        for (tag, len) in lengths.into_iter().enumerate() {
            receives.push(Some(comm.start_receive(vec![99f32; len].into(), peer, Tag(tag as u16))?));
        }
        let mut sends = Vec::new();
        for tag in order().collect::<Vec<_>>().into_iter().rev() {
            sends.push(comm.start_send(content(comm.rank(), tag).into(), peer, Tag(tag as u16))?);
        }
        for tag in order() {
            let Some(request) = receives[tag].take() else { return same("a receive of each tag", true, false) };
            equal(format!("tag {tag}"), &content(peer, tag), &request.wait()?.to_vec())?;
        }
        wait_backwards(sends)?;
    }
    Ok(())
}

fn crowd(comm: &Arc<dyn Communicator>) -> Outcome {
    const MESSAGES: u16 = 64;
    const LEN: usize = 1 << 20;
    // One pair is enough, and does not fill the memory of a machine with many ranks.
    if comm.rank() > Rank(1) {
        return Ok(());
    }
    let peer = partner(&**comm);
    let byte = |from: Rank, k: u16| (k as u8).wrapping_mul(3) + from.0 as u8;
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    // All sends first: none may wait for its receive to be started.
    for k in 0..MESSAGES {
        sends.push(comm.start_send(vec![byte(comm.rank(), k); LEN].into(), peer, Tag(k % 4))?);
    }
    for k in 0..MESSAGES {
        receives.push(comm.start_receive(vec![0u8; LEN].into(), peer, Tag(k % 4))?);
    }
    wait_backwards(sends)?;
    for (k, buffer) in (0..MESSAGES).zip(wait_backwards(receives)?) {
        equal(format!("message {k}"), &vec![byte(peer, k); LEN], &buffer.to_vec())?;
    }
    Ok(())
}

fn computing(comm: &Arc<dyn Communicator>) -> Outcome {
    let (peer, len) = (partner(&**comm), long::<f64>());
    let send = comm.start_send(input::<f64>(comm.rank().0, len).into(), peer, Tag(5))?;
    let mut receive = comm.start_receive(vec![0f64; len].into(), peer, Tag(5))?;
    // Something to compute between the polls, of one of the two requests only: a poll moves all.
    let mut x = 1.0f64;
    while !receive.is_complete()? {
        x = std::hint::black_box((0..10_000).fold(x, |x, _| (x + 2.0 / x) / 2.0));
    }
    equal("the message".into(), &input::<f64>(peer.0, len), &receive.wait()?.to_vec())?;
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
    same("the last byte", 7 + previous(&**comm).0 as u8, received.as_buffer().bytes()[len - 1])?;
    send.wait()?;
    Ok(())
}
