//! Partitions of random models over random meshes: every element lies where it should, as often as it should.

use mp_plan::{
    check_all_to_all, check_tensor, legal_tensor_degrees, partition, Architecture, ArchitectureName, Cut, Degrees,
    Error, Folding, GradientSync, Mesh, ModelConfig, Partition, PartitionedParameter, Placement, Stages, Switch, Tie,
};
use proptest::{prelude::*, sample::Index};

/// Random small models of both families.
fn architectures() -> impl Strategy<Value = Architecture> {
    let shape = (1..=40_usize, 1..=3_usize, 1..=6_usize, 1..=6_usize, 1..=5_usize, 1..=8_usize, 1..=300_usize);
    (shape, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |((hidden, layers, kv_heads, per, half, ffn, vocab), gpt2, bias, tied)| {
            let config = ModelConfig {
                architecture: if gpt2 { ArchitectureName::Gpt2 } else { ArchitectureName::Llama },
                hidden,
                layers,
                heads: kv_heads * per,
                kv_heads,
                head_dim: 2 * half,
                // 12 makes many degrees legal, without making all of them so.
                ffn: 12 * ffn,
                bias: Some(bias),
                tie_embeddings: Some(tied),
                ..ModelConfig::default()
            };
            Architecture::resolve(&config, vocab, 16).unwrap()
        },
    )
}

/// Random models with one of their legal layouts.
fn partitions() -> impl Strategy<Value = Partition> {
    (architectures(), any::<Index>(), 1..=3_usize).prop_map(|(architecture, choice, dp)| {
        let legal = legal_tensor_degrees(&architecture);
        let mesh = mesh(legal[choice.index(legal.len())], dp);
        Partition::new(&architecture, &mesh).unwrap()
    })
}

fn mesh(tp: usize, dp: usize) -> Mesh {
    Mesh::new(Degrees { dp, tp, ..Degrees::default() }).unwrap()
}

/// Counts on how many tensor ranks each element of the full tensor lies, by walking over every shard.
fn holders(parameter: &PartitionedParameter, tp: usize) -> Vec<usize> {
    let shape = &parameter.spec.shape;
    let mut holders = vec![0; shape.iter().product()];
    for rank in 0..tp {
        let (dim, range) = parameter.range(rank).unwrap_or((0, 0..shape[0]));
        let inner: usize = shape[dim + 1..].iter().product();
        for (element, count) in holders.iter_mut().enumerate() {
            *count += usize::from(range.contains(&(element / inner % shape[dim])));
        }
    }
    holders
}

proptest! {
    #[test]
    fn shards_tile_every_tensor(partition in partitions()) {
        let tp = partition.mesh.degrees().tp;
        for parameter in &partition.parameters {
            let replicas = parameter.replicas();
            prop_assert!(holders(parameter, tp).iter().all(|&count| count == replicas), "{parameter:?}");
        }
    }

    #[test]
    fn ranges_fill_their_shards_but_for_the_vocabulary_padding(partition in partitions()) {
        let tp = partition.mesh.degrees().tp;
        for parameter in &partition.parameters {
            let full = &parameter.spec.shape;
            let local = parameter.local_shape();
            for rank in 0..tp {
                let Some((dim, range)) = parameter.range(rank) else {
                    prop_assert_eq!(&local, full);
                    continue;
                };
                prop_assert!(range.start <= range.end && range.end <= full[dim]);
                let padded = parameter.spec.cut == Cut::Vocabulary;
                prop_assert!(range.len() == local[dim] || padded && range.len() < local[dim]);
                for other in (0..full.len()).filter(|&other| other != dim) {
                    prop_assert_eq!(local[other], full[other]);
                }
            }
        }
    }

    #[test]
    fn stored_elements_are_the_replicas_and_the_padding(partition in partitions()) {
        let tp = partition.mesh.degrees().tp;
        let architecture = &partition.architecture;
        let held: usize = partition.parameters.iter().map(|p| p.spec.elements() * p.replicas()).sum();
        let tables = if architecture.tie_embeddings { 1 } else { 2 };
        let padding = tables * (partition.vocab_padded - architecture.vocab) * architecture.hidden;
        prop_assert_eq!(partition.local_elements() * tp, held + padding);
        prop_assert!(partition.vocab_padded.is_multiple_of(tp) && partition.vocab_padded - architecture.vocab < tp);
        let full: usize = partition.parameters.iter().map(|parameter| parameter.spec.elements()).sum();
        prop_assert_eq!(full, architecture.parameter_count());
    }

    #[test]
    fn ranks_hold_whole_heads_and_the_keys_of_their_queries(partition in partitions()) {
        let &Architecture { heads, kv_heads, head_dim, .. } = &partition.architecture;
        let find = |name: &str| partition.get(&format!("layers.0.attention.{name}.weight")).unwrap();
        for rank in 0..partition.mesh.degrees().tp {
            let (_, query) = find("query").range(rank).unwrap();
            let (_, key) = find("key").range(rank).unwrap();
            prop_assert_eq!(Some((0, key.clone())), find("value").range(rank));
            prop_assert_eq!(Some((1, query.clone())), find("output").range(rank));
            for bound in [query.start, query.end, key.start, key.end] {
                prop_assert!(bound.is_multiple_of(head_dim));
            }
            // Query head q attends with key head q·kv/h.
            let needed = |head: usize| head * kv_heads / heads;
            prop_assert_eq!(needed(query.start / head_dim), key.start / head_dim);
            prop_assert_eq!(needed(query.end / head_dim - 1), key.end / head_dim - 1);
        }
    }

    #[test]
    fn entrances_and_exits_of_the_mlp_meet(partition in partitions()) {
        let find = |name: &str| partition.get(&format!("layers.0.mlp.{name}"));
        for rank in 0..partition.mesh.degrees().tp {
            let (dim, columns) = find("down.weight").unwrap().range(rank).unwrap();
            prop_assert_eq!(dim, 1);
            for entrance in ["gate.weight", "up.weight", "gate.bias", "up.bias"] {
                if let Some(parameter) = find(entrance) {
                    prop_assert_eq!(parameter.range(rank), Some((0, columns.clone())));
                }
            }
        }
    }

    #[test]
    fn gradients_are_summed_where_ranks_saw_different_things(partition in partitions()) {
        let tp = partition.mesh.degrees().tp;
        for parameter in &partition.parameters {
            let (plain, sequence) = (parameter.gradient_sync(false), parameter.gradient_sync(true));
            match &parameter.tp {
                Placement::Replicated { .. } if tp > 1 => {
                    prop_assert_eq!((plain, sequence), (GradientSync::None, GradientSync::SumOverTp));
                }
                Placement::Sharded { replicas, .. } if *replicas > 1 => {
                    let sum = GradientSync::SumOverReplicas { group_size: tp / partition.architecture.kv_heads };
                    prop_assert_eq!((plain, sequence), (sum, sum));
                    for rank in 0..tp {
                        prop_assert_eq!(parameter.range(rank), parameter.range(rank / replicas * replicas));
                    }
                }
                _ => prop_assert_eq!((plain, sequence), (GradientSync::None, GradientSync::None)),
            }
        }
    }

    #[test]
    fn exactly_the_legal_degrees_are_accepted(architecture in architectures(), tp in 1..=40_usize) {
        let legal = legal_tensor_degrees(&architecture);
        let (heads, kv, ffn) = (architecture.heads, architecture.kv_heads, architecture.ffn);
        let possible = heads % tp == 0 && ffn % tp == 0 && (kv % tp == 0 || tp % kv == 0);
        prop_assert_eq!(legal.contains(&tp), possible);
        prop_assert_eq!(check_tensor(&architecture, tp).is_ok(), possible);
        match Partition::new(&architecture, &mesh(tp, 1)) {
            Ok(_) => prop_assert!(possible),
            Err(Error::NotDivisible { parts, legal: named, .. }) => {
                prop_assert!(!possible && parts == tp && named == legal);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn partitions_survive_json(partition in partitions()) {
        let json = serde_json::to_string(&partition).unwrap();
        prop_assert_eq!(serde_json::from_str::<Partition>(&json).unwrap(), partition);
    }
}

fn grouped(tp: usize) -> Result<Partition, Error> {
    let config = ModelConfig { hidden: 24, heads: 12, kv_heads: 4, ffn: 30, ..ModelConfig::default() };
    Partition::new(&Architecture::resolve(&config, 10, 16).unwrap(), &mesh(tp, 1))
}

#[test]
fn refusals_name_the_size_and_the_legal_degrees() {
    for (tp, message) in [
        (5, "model.heads 12 cannot be cut in 5 (parallel.tp); parallel.tp may be 1 or 2"),
        (3, "model.kv_heads 4 cannot be cut in 3 (parallel.tp); parallel.tp may be 1 or 2"),
        (4, "model.ffn 30 cannot be cut in 4 (parallel.tp); parallel.tp may be 1 or 2"),
    ] {
        assert_eq!(grouped(tp).unwrap_err().to_string(), message);
    }
}

#[test]
fn more_ranks_than_tokens_leave_some_with_padding_alone() {
    let config = ModelConfig { heads: 8, ffn: 64, ..ModelConfig::default() };
    let partition = Partition::new(&Architecture::resolve(&config, 5, 16).unwrap(), &mesh(8, 1)).unwrap();
    let embedding = partition.get("embedding.weight").unwrap();
    assert_eq!((partition.vocab_padded, embedding.local_shape()), (8, vec![1, 128]));
    let ranges: Vec<_> = (0..8).map(|rank| embedding.range(rank).unwrap().1).collect();
    assert_eq!(ranges, [0..1, 1..2, 2..3, 3..4, 4..5, 5..5, 5..5, 5..5]);
}

#[test]
fn axes_without_a_cut_are_refused() {
    let architecture = grouped(1).unwrap().architecture;
    let degrees = Degrees { dp: 2, ep: 2, ..Degrees::default() };
    let error = Partition::new(&architecture, &Mesh::new(degrees).unwrap()).unwrap_err();
    assert_eq!(error, Error::Uncut { axis: "expert", degree: 2 });
}

#[test]
fn sequences_are_cut_where_they_divide() {
    assert_eq!(partition::check_sequence(64, 1, 4), Ok(()));
    let error = Error::Sequence { seq: 66, tp: 4, nearest: 68 };
    assert_eq!(
        error.to_string(),
        "train.seq 66 cannot be cut in 4 (parallel.tp); 68 would do, or parallel.sequence_parallel = false"
    );
    assert_eq!(partition::check_sequence(66, 1, 4), Err(error.clone()));
    let decide = partition::sequence_parallel;
    assert_eq!(decide(Switch::Auto, 64, 1, 4), Ok(true));
    assert_eq!(decide(Switch::Auto, 66, 1, 4), Ok(false));
    assert_eq!(decide(Switch::Auto, 64, 1, 1), Ok(false));
    assert_eq!(decide(Switch::Set(true), 66, 1, 4), Err(error));
    assert_eq!(decide(Switch::Set(true), 64, 1, 4), Ok(true));
    assert_eq!(decide(Switch::Set(false), 66, 1, 4), Ok(false));
}

proptest! {
    #[test]
    fn every_parameter_counts_on_one_rank_of_the_pipeline(
        tied: bool, gpt2: bool, layers in 4usize..9, pp in 1usize..5, v: bool,
    ) {
        let architecture = if gpt2 { ArchitectureName::Gpt2 } else { ArchitectureName::Llama };
        let config = ModelConfig { architecture, layers, tie_embeddings: Some(tied), ..ModelConfig::default() };
        let architecture = Architecture::resolve(&config, 64, 16).unwrap();
        let whole = Partition::new(&architecture, &Mesh::new(Degrees { pp, ..Degrees::default() }).unwrap()).unwrap();
        let (chunks, folding) = if v && 2 * pp <= layers { (2, Folding::V) } else { (1, Folding::Loop) };
        let stages = Stages::new(&architecture, architecture.max_seq, pp, chunks, folding, None).unwrap();
        let mut counted = Vec::new();
        let mut copies = 0;
        for rank in 0..pp {
            for parameter in whole.of_rank(&stages, rank).parameters {
                match parameter.tie {
                    Tie::Copy => copies += 1,
                    _ => counted.push(parameter.spec.name),
                }
            }
        }
        prop_assert_eq!(copies, usize::from(tied && stages.tied_ranks().is_some()));
        counted.sort();
        let mut all: Vec<_> = whole.parameters.iter().map(|parameter| parameter.spec.name.clone()).collect();
        all.sort();
        prop_assert_eq!(counted, all);
    }
}

#[test]
fn a_sequence_that_is_no_multiple_is_refused_with_its_neighbours() {
    assert_eq!(
        partition::check_sequence(30, 4, 1).unwrap_err().to_string(),
        "sequences of 30 tokens (train.seq) cannot be cut: over parallel.cp 4 they must be a multiple of 8; [24, 32] are nearest"
    );
    assert!(partition::check_sequence(32, 4, 2).is_ok());
    assert!(matches!(
        partition::check_sequence(24, 4, 2),
        Err(Error::ContextSequence { multiple: 16, nearest, .. }) if nearest == [16, 32]
    ));
    assert!(matches!(
        partition::check_sequence(3, 2, 1),
        Err(Error::ContextSequence { nearest, .. }) if nearest == [4]
    ));
    assert!(partition::check_sequence(31, 1, 1).is_ok());
    assert!(partition::check_sequence(0, 1, 1).is_err());
}

#[test]
fn heads_that_do_not_divide_are_refused_with_the_legal_degrees() {
    assert!(check_all_to_all(12, 12, 1, 4).is_ok());
    assert!(check_all_to_all(12, 2, 1, 4).is_ok());
    assert!(check_all_to_all(12, 4, 2, 2).is_ok());
    let words = check_all_to_all(12, 3, 1, 4).unwrap_err().to_string();
    assert_eq!(
        words,
        "12 query heads and 3 key/value heads of a tensor rank cannot be dealt out to parallel.cp 4 ranks; \
         [1, 3, 6, 12] would do, or parallel.context = \"ring\""
    );
    assert!(matches!(check_all_to_all(4, 4, 4, 2), Err(Error::Heads { legal, .. }) if legal == [1]));
}
