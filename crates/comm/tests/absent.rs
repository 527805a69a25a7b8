//! A rank without peers: it refuses what every group refuses, and answers in the right shapes.

use std::sync::Arc;

use mp_comm::absent::Absent;
use mp_comm::fake::{FakeDevice, Pace};
use mp_comm::{conformance, Buffer, BufferMut, Communicator, Error, Kind, OwnedBuffer, Place, Rank, ReduceOp, Tag};

#[test]
fn wrong_arguments_are_refused_as_everywhere() {
    for (rank, size) in [(0, 1), (0, 2), (1, 2), (3, 4)] {
        let comm: Arc<dyn Communicator> = Arc::new(Absent::new("tp", Rank(rank), size));
        assert_eq!((comm.rank(), comm.size(), comm.local_size(), comm.name()), (Rank(rank), size, size, "tp"));
        let report = conformance::refusals(&comm).unwrap();
        assert!(report.passed > 0 && report.failures.is_empty(), "rank {rank} of {size}: {report}");
    }
}

#[test]
fn answers_have_the_right_shape_and_come_from_this_rank_alone() {
    let comm = Absent::new("tp", Rank(1), 3);
    let send = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0];

    let mut sum = send;
    comm.all_reduce(BufferMut::new(&mut sum), ReduceOp::Sum).unwrap();
    assert_eq!(sum, send);

    let mut run = [0f32; 2];
    comm.reduce_scatter(Buffer::new(&send), BufferMut::new(&mut run), ReduceOp::Sum).unwrap();
    assert_eq!(run, [3.0, 4.0]);
    let started = comm.start_reduce_scatter(send.to_vec().into(), vec![0f32; 2].into(), ReduceOp::Sum).unwrap();
    assert_eq!(started.wait().unwrap().to_vec::<f32>(), [3.0, 4.0]);

    let mut all = [0f32; 6];
    comm.all_gather(Buffer::new(&send[..2]), BufferMut::new(&mut all)).unwrap();
    assert_eq!(all, [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    let started = comm.start_all_gather(vec![7f32].into(), vec![0f32; 3].into()).unwrap();
    assert_eq!(started.wait().unwrap().to_vec::<f32>(), [7.0, 7.0, 7.0]);
    // Nothing from everybody is nothing.
    comm.all_gather(Buffer::new(&send[..0]), BufferMut::new(&mut all[..0])).unwrap();

    comm.all_to_all(Buffer::new(&send), BufferMut::new(&mut all)).unwrap();
    assert_eq!(all, send);
    // One element to rank 0, three to itself, two to rank 2; two, three and none come back.
    let mut uneven = [9f32; 5];
    comm.all_to_all_v(Buffer::new(&send), &[1, 3, 2], BufferMut::new(&mut uneven), &[2, 3, 0]).unwrap();
    assert_eq!(uneven, [0.0, 0.0, 2.0, 3.0, 4.0]);
}

#[test]
fn messages_leave_and_zeros_arrive() {
    let comm = Absent::new("pp", Rank(1), 3);
    let (tag, mut message) = (Tag(3), [1f64, 2.0]);
    comm.send(Buffer::new(&message), Rank(2), tag).unwrap();
    comm.receive(BufferMut::new(&mut message), Rank(0), tag).unwrap();
    assert_eq!(message, [0.0, 0.0]);
    let sent = comm.start_send(vec![5i64].into(), Rank(0), tag).unwrap();
    assert_eq!(sent.wait().unwrap().to_vec::<i64>(), [5]);
    let mut arrived = comm.start_receive(vec![5i64].into(), Rank(2), tag).unwrap();
    assert!(arrived.is_complete().unwrap());
    assert_eq!(arrived.wait().unwrap().to_vec::<i64>(), [0]);
    let pair = comm.start_send_receive(vec![5i64].into(), Rank(2), vec![5u8; 2].into(), Rank(0), tag).unwrap();
    assert_eq!(pair.wait().unwrap().to_vec::<u8>(), [0, 0]);
    comm.barrier().unwrap();
}

/// One rank's computation is timed on a device, too.
#[test]
fn memory_on_a_device_is_left_as_it_is() {
    let device = FakeDevice::new(0, Pace::Late);
    let comm = Absent::new("tp", Rank(1), 2);
    let (mut own, mut all) = (device.allocate(8), device.allocate(16));
    let kind = Kind::F32;
    comm.all_reduce(BufferMut::on_device(kind, &mut *own).unwrap(), ReduceOp::Sum).unwrap();
    let send = Buffer::on_device(kind, &*own).unwrap();
    comm.all_gather(send, BufferMut::on_device(kind, &mut *all).unwrap()).unwrap();
    comm.broadcast(BufferMut::on_device(kind, &mut *all).unwrap(), Rank(0)).unwrap();
    comm.receive(BufferMut::on_device(kind, &mut *own).unwrap(), Rank(0), Tag(0)).unwrap();
    let send = Buffer::on_device(kind, &*all).unwrap();
    comm.reduce_scatter(send, BufferMut::on_device(kind, &mut *own).unwrap(), ReduceOp::Sum).unwrap();
    let started = comm.start_receive(OwnedBuffer::on_device(kind, own).unwrap(), Rank(0), Tag(0)).unwrap();
    assert_eq!(started.wait().unwrap().place(), Place::Device(0));
    assert!(device.take_log().is_empty());
    // Here and there at once is a mistake everywhere.
    let mixed = comm.all_gather(Buffer::new(&[1f32, 2.0]), BufferMut::on_device(kind, &mut *all).unwrap()).unwrap_err();
    assert!(matches!(mixed, Error::MixedPlaces { .. }), "{mixed}");
}

/// Every run begins by splitting its world.
#[test]
fn nothing_is_split_from_it() {
    for size in [1, 2] {
        let comm = Absent::new("world", Rank(0), size);
        let refused = comm.split(Some(0), 0, "tp").unwrap_err();
        assert_eq!(refused, Error::PeersAbsent { group: "world".into(), part: "tp".into() });
        assert_eq!(comm.split(None, 0, "tp").unwrap_err(), refused);
    }
}

#[test]
#[should_panic(expected = "rank 2 of 2")]
fn a_rank_is_one_of_its_group() {
    let _ = Absent::new("tp", Rank(2), 2);
}
