//! Compiles only if the traits stay object-safe and shareable, as their users need them.

use std::sync::Arc;

use mp_comm::communicator::Pending;
use mp_comm::solo::Solo;
use mp_comm::{ByteBuffer, Communicator, OwnedBuffer, Request};

fn is_shareable<T: Send + Sync + ?Sized>() {}
fn is_movable<T: Send + ?Sized>() {}

#[test]
fn traits_are_object_safe() {
    let _: Option<Arc<dyn Communicator>> = Some(Arc::new(Solo::new("alone")));
    let _: Option<Box<dyn Pending>> = None;
    let _: Option<Box<dyn ByteBuffer>> = Some(Box::new(vec![0f32]));
    is_shareable::<dyn Communicator>();
    is_movable::<Request>();
    is_movable::<OwnedBuffer>();
}
