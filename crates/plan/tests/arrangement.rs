//! Flat buffers: every element has one place, every bucket can be shared out, and the bytes are those of the papers.

use mp_plan::{
    Architecture, ArchitectureName, Arrangement, Degrees, Mesh, ModelConfig, Partition, Precision, Storage, Zero,
};
use proptest::prelude::*;

fn partition(name: ArchitectureName, layers: usize, tp: usize) -> Partition {
    let config = ModelConfig { architecture: name, layers, heads: 8, hidden: 48, ..ModelConfig::default() };
    let architecture = Architecture::resolve(&config, 101, 16).unwrap();
    Partition::new(&architecture, &Mesh::new(Degrees { tp, ..Degrees::default() }).unwrap()).unwrap()
}

proptest! {
    #[test]
    fn every_element_has_one_place_and_one_owner(
        gpt2: bool, layers in 1usize..5, tp in prop::sample::select(vec![1usize, 2, 4]),
        stage in 0u8..4, parts in 1usize..7, bucket in 1usize..20_000,
    ) {
        let name = if gpt2 { ArchitectureName::Gpt2 } else { ArchitectureName::Llama };
        let partition = partition(name, layers, tp);
        let zero = Zero::try_from(stage).unwrap();
        let made = Arrangement::new(&partition.parameters, zero, parts, bucket);
        let mut places = vec![0u8; made.elements()];
        for (range, parameter) in made.ranges().iter().zip(&partition.parameters) {
            prop_assert_eq!(range.len(), parameter.local_elements());
            places[range.clone()].iter_mut().for_each(|count| *count += 1);
        }
        prop_assert!(places.iter().all(|&count| count <= 1));
        let mut owners = vec![0u8; made.elements()];
        for part in 0..made.parts() {
            for range in made.owned(part) {
                owners[range].iter_mut().for_each(|count| *count += 1);
            }
        }
        prop_assert!(owners.iter().all(|&count| count == 1));
        let (mut element, mut parameter) = (0, 0);
        for bucket in made.buckets() {
            prop_assert_eq!((bucket.range.start, bucket.parameters.start), (element, parameter));
            for index in bucket.parameters.clone() {
                prop_assert!(bucket.range.start <= made.ranges()[index].start);
                prop_assert!(made.ranges()[index].end <= bucket.range.end);
            }
            (element, parameter) = (bucket.range.end, bucket.parameters.end);
        }
        prop_assert_eq!((element, parameter), (made.elements(), partition.parameters.len()));
    }

    #[test]
    fn units_are_the_entrance_each_layer_and_the_exit(layers in 1usize..5, bucket in 1usize..20_000) {
        let partition = partition(ArchitectureName::Gpt2, layers, 1);
        let made = Arrangement::new(&partition.parameters, Zero::Parameters, 3, bucket);
        let mut expected = vec![None];
        expected.extend((0..layers).map(Some));
        expected.push(None);
        prop_assert_eq!(made.units().iter().map(|unit| unit.layer).collect::<Vec<_>>(), expected);
        let mut bucket = 0;
        for unit in made.units() {
            prop_assert_eq!(unit.buckets.start, bucket);
            prop_assert!(!unit.buckets.is_empty());
            for index in unit.buckets.clone().flat_map(|bucket| made.buckets()[bucket].parameters.clone()) {
                prop_assert_eq!(partition.parameters[index].spec.layer, unit.layer);
            }
            bucket = unit.buckets.end;
        }
        prop_assert_eq!(bucket, made.buckets().len());
    }
}

#[test]
fn stacked_matrices_touch() {
    let partition = partition(ArchitectureName::Llama, 1, 1);
    let made = Arrangement::new(&partition.parameters, Zero::Replicated, 1, usize::MAX);
    let at = |name: &str| {
        let index = partition.parameters.iter().position(|p| p.spec.name == format!("layers.0.{name}.weight")).unwrap();
        made.ranges()[index].clone()
    };
    assert_eq!(at("attention.query").end, at("attention.key").start);
    assert_eq!(at("attention.key").end, at("attention.value").start);
    assert_eq!(at("mlp.gate").end, at("mlp.up").start);
    assert_eq!(at("attention.output").start % 64, 0);
}

/// Rajbhandari et al. 2019, figure 1, with this project's 32-bit gradients: Ψ elements, N ranks, in bfloat16.
#[test]
fn bytes_of_each_stage() {
    let storage = Storage { precision: Precision::Bf16, moments: 2 };
    let partition = partition(ArchitectureName::Llama, 2, 1);
    let bytes = |zero| {
        let made = Arrangement::new(&partition.parameters, zero, 4, 10_000);
        (made.bytes(&storage), made.elements())
    };
    for zero in Zero::ALL {
        let (got, n) = bytes(zero);
        let share = |from: Zero| if zero >= from { 4 } else { 1 };
        assert_eq!(got.parameters, 2 * n / share(Zero::Parameters), "{zero:?}");
        assert_eq!(got.gradients, 4 * n / share(Zero::Gradients), "{zero:?}");
        assert_eq!(got.master, 4 * n / share(Zero::Optimizer), "{zero:?}");
        assert_eq!(got.moments, 8 * n / share(Zero::Optimizer), "{zero:?}");
    }
}
