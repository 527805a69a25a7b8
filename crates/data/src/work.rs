//! Work on pieces of inputs by several threads at once, whose results come in the order of the input.

use std::thread;

use crossbeam::channel::{self, Receiver, Sender};

use crate::inputs::Piece;
use crate::{Documents, Result};

/// A piece, and where what comes of it is to go.
type Errand<T> = (Piece, Sender<Result<T>>);

/// Has `threads` threads `work` on the pieces of `documents`, each with a copy of its own, and hands what comes of them to
/// `take`, in order and until the first error. Of pieces there are as many in memory as keep every thread busy.
pub(crate) fn in_order<T: Send>(
    documents: Documents,
    threads: usize,
    work: impl Fn(Piece) -> Result<T> + Clone + Send,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    thread::scope(|scope| {
        // The reader waits for room.
        let (errands, waiting) = channel::bounded::<Errand<T>>(threads);
        let (order, answers) = channel::bounded(2 * threads);
        scope.spawn(move || hand_out(documents, &errands, &order));
        for _ in 0..threads {
            let (waiting, work) = (waiting.clone(), work.clone());
            scope.spawn(move || {
                for (piece, answer) in waiting {
                    // Nobody waits for it where an earlier one failed.
                    let _ = answer.send(work(piece));
                }
            });
        }
        drop(waiting);
        for answer in answers {
            // A thread that panicked leaves none; the scope passes its panic on.
            let Ok(done) = answer.recv() else { break };
            take(done?)?;
        }
        Ok(())
    })
}

/// Reads pieces and hands each to the next free thread; their answers are asked for in order.
fn hand_out<T>(mut documents: Documents, errands: &Sender<Errand<T>>, order: &Sender<Receiver<Result<T>>>) {
    loop {
        let (answer, asked) = channel::bounded(1);
        match documents.next_piece() {
            Ok(None) => return,
            Ok(Some(piece)) => {
                if order.send(asked).is_err() || errands.send((piece, answer)).is_err() {
                    return;
                }
            }
            Err(error) => {
                // There is room for one, and the collector may be gone.
                let _ = answer.send(Err(error));
                let _ = order.send(asked);
                return;
            }
        }
    }
}
