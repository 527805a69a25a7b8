//! The machine at hand as it is measured: a possible one, the same on all ranks, with the points that a plan asks for.

use std::sync::{Arc, Mutex};

use mp_comm::{threads, Communicator};
use mp_plan::{cost, Cluster, Collective, Group, Precision};
use mp_runtime::Device;
use mp_train::measure::{measure, text, Effort, Listener};

fn measured(ranks: usize, effort: Effort) -> Vec<Cluster> {
    threads::run(ranks, |world: Arc<dyn Communicator>| measure(&world, Device::Cpu, effort, &mut ()))
}

#[test]
fn all_ranks_measure_one_possible_machine() {
    for ranks in [1, 2, 4] {
        let machines = measured(ranks, Effort::Quick(Precision::Fp32));
        let machine = &machines[0];
        assert!(machines.iter().all(|other| other == machine));
        machine.check().unwrap();
        assert_eq!((machine.ranks(), machine.node.count), (ranks, 1));
        let peak = machine.device.peak;
        assert!(peak.fp32.is_some() && peak.bf16.is_none() && peak.fp64.is_none(), "{peak:?}");
        let points = machine.measured.as_ref().unwrap();
        let sizes: Vec<usize> = points.collectives.iter().map(|group| group.ranks).collect();
        let expected = [2, 4].into_iter().filter(|size| ranks % size == 0).flat_map(|size| [size; 4]);
        assert_eq!(sizes, expected.collect::<Vec<_>>());
        assert_eq!(points.messages.inside.is_empty(), ranks == 1);
    }
}

/// What was measured goes before what is made of it: a point's own time is what the model of cost answers.
#[test]
fn a_plan_is_told_what_was_measured() {
    let machine = &measured(2, Effort::Quick(Precision::Fp64))[0];
    let (costs, points) = (cost::of(machine), machine.measured.as_ref().unwrap());
    for group in &points.collectives {
        let longest = group.points.iter().map(|point| point[1]).fold(0.0, f64::max);
        let last = group.points.last().unwrap()[0];
        let answer = costs.collective(group.what, last, Group { size: 2, neighbours: 2 });
        assert!((answer / longest - 1.0).abs() < 1e-9, "{group:?}: {answer}");
    }
    assert!(points.collectives.iter().any(|group| group.what == Collective::AllToAll));
    assert!(costs.product(1, [64, 64, 64], Precision::Fp64).is_finite());
    assert!(costs.product(1, [64, 64, 64], Precision::Fp32).is_infinite(), "nobody has measured it");
    assert!(costs.attention(1e6, Precision::Fp64).is_some());
}

#[test]
fn a_file_says_the_machine_to_four_digits_and_listeners_hear_the_parts() {
    struct Parts<'a>(&'a Mutex<Vec<String>>);
    impl Listener for Parts<'_> {
        fn begin(&mut self, what: &str) {
            self.0.lock().unwrap().push(what.into());
        }
    }
    let heard = Mutex::new(Vec::new());
    let machines = threads::run(1, |world: Arc<dyn Communicator>| {
        measure(&world, Device::Cpu, Effort::Quick(Precision::Bf16), &mut Parts(&heard))
    });
    let written = text(&machines[0], 1, "now");
    let read: Cluster = toml::from_str(&written).unwrap();
    read.check().unwrap();
    assert_eq!(text(&read, 1, "now"), written);
    assert!(written.contains("One rank has no links"), "{written}");
    let parts = ["products in bf16", "attention in bf16", "operations element by element", "operations within a step"];
    assert_eq!(heard.into_inner().unwrap(), parts);
}
