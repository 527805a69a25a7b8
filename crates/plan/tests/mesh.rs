//! Meshes: ranks, coordinates and groups of random meshes, and what free degrees resolve to.

use std::collections::BTreeSet;

use mp_plan::{Architecture, Axis, Degrees, Error, Mesh, ModelConfig, ParallelConfig};
use proptest::prelude::*;

/// Meshes up to 5⁴ ranks, with every legal expert degree.
fn meshes() -> impl Strategy<Value = Mesh> {
    (1..=5_usize, 1..=5_usize, 1..=5_usize, 1..=5_usize, any::<proptest::sample::Index>()).prop_map(
        |(pp, dp, cp, tp, choice)| {
            let experts: Vec<usize> = (1..=dp * cp).filter(|ep| (dp * cp).is_multiple_of(*ep)).collect();
            let ep = experts[choice.index(experts.len())];
            Mesh::new(Degrees { pp, dp, cp, tp, ep }).unwrap()
        },
    )
}

proptest! {
    #[test]
    fn ranks_and_coordinates_correspond(mesh in meshes()) {
        let mut seen = BTreeSet::new();
        for rank in 0..mesh.size() {
            let at = mesh.coordinates(rank);
            prop_assert_eq!(mesh.rank(&at), rank);
            // Outer to inner: ranks in order are places in lexicographic order.
            let place = (at.pp, at.dp, at.cp, at.tp);
            prop_assert!(seen.last().is_none_or(|last| *last < place));
            seen.insert(place);
        }
        let degrees = mesh.degrees();
        prop_assert_eq!(seen.len(), degrees.pp * degrees.dp * degrees.cp * degrees.tp);
    }

    #[test]
    fn groups_partition_the_world(mesh in meshes()) {
        for axis in Axis::ALL {
            let groups: BTreeSet<Vec<usize>> = (0..mesh.size()).map(|rank| mesh.group(axis, rank)).collect();
            let mut members: Vec<usize> = groups.iter().flatten().copied().collect();
            members.sort_unstable();
            prop_assert_eq!(members, (0..mesh.size()).collect::<Vec<_>>());
            for (rank, group) in (0..mesh.size()).map(|rank| (rank, mesh.group(axis, rank))) {
                prop_assert_eq!(group.len(), mesh.degree(axis));
                prop_assert_eq!(group[mesh.coordinate(axis, rank)], rank);
            }
        }
    }

    #[test]
    fn groups_differ_on_their_axis_alone(mesh in meshes()) {
        for rank in 0..mesh.size() {
            let at = mesh.coordinates(rank);
            for (axis, others) in [
                (Axis::Pp, [Axis::Dp, Axis::Cp, Axis::Tp]),
                (Axis::Dp, [Axis::Pp, Axis::Cp, Axis::Tp]),
                (Axis::Cp, [Axis::Pp, Axis::Dp, Axis::Tp]),
                (Axis::Tp, [Axis::Pp, Axis::Dp, Axis::Cp]),
            ] {
                for member in mesh.group(axis, rank) {
                    for other in others {
                        prop_assert_eq!(mesh.coordinate(other, member), mesh.coordinate(other, rank));
                    }
                }
            }
            for member in mesh.group(Axis::Ep, rank).into_iter().map(|member| mesh.coordinates(member)) {
                prop_assert_eq!((member.pp, member.tp), (at.pp, at.tp));
            }
        }
    }

    #[test]
    fn splitting_by_colour_and_key_gives_the_group(mesh in meshes()) {
        for axis in Axis::ALL {
            for rank in 0..mesh.size() {
                let color = mesh.split_key(axis, rank).0;
                // What a communicator's split does: same colour, ordered by key.
                let mut same: Vec<usize> =
                    (0..mesh.size()).filter(|&other| mesh.split_key(axis, other).0 == color).collect();
                same.sort_by_key(|&other| mesh.split_key(axis, other).1);
                prop_assert_eq!(same, mesh.group(axis, rank));
            }
        }
    }

    #[test]
    fn meshes_survive_json(mesh in meshes()) {
        let json = serde_json::to_string(&mesh).unwrap();
        prop_assert_eq!(serde_json::from_str::<Mesh>(&json).unwrap(), mesh);
    }

    #[test]
    fn resolving_fills_the_world_or_names_degrees_that_do(
        tp in 0..=9_usize, dp in 0..=9_usize, world in 1..=64_usize, kv_heads in 1..=4_usize, per in 1..=4_usize,
    ) {
        let architecture = architecture(kv_heads * per, kv_heads);
        let config = ParallelConfig { tp, dp, ..ParallelConfig::default() };
        match Mesh::resolve(&config, world, &architecture) {
            Ok(mesh) => {
                prop_assert_eq!(mesh.size(), world);
                prop_assert!(tp == 0 || mesh.degree(Axis::Tp) == tp);
                prop_assert!(dp == 0 || mesh.degree(Axis::Dp) == dp);
            }
            Err(Error::WorldSize { legal, .. }) => {
                prop_assert!(!(tp == 0 && dp == 0));
                let typed = ParallelConfig { tp: legal.tp, dp: legal.dp, ..config };
                prop_assert_eq!(Mesh::resolve(&typed, world, &architecture).unwrap().degrees(), legal);
            }
            Err(Error::NotDivisible { legal, parts, .. }) => prop_assert!(!legal.contains(&parts)),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

fn architecture(heads: usize, kv_heads: usize) -> Architecture {
    let config = ModelConfig { heads, kv_heads, head_dim: 8, ffn: 96, ..ModelConfig::default() };
    Architecture::resolve(&config, 257, 64).unwrap()
}

fn resolve(tp: usize, dp: usize, world: usize) -> Result<Mesh, Error> {
    Mesh::resolve(&ParallelConfig { tp, dp, ..ParallelConfig::default() }, world, &architecture(4, 4))
}

#[test]
fn free_degrees_are_chosen() {
    for (tp, dp, world, chosen) in [
        (0, 0, 1, (1, 1)),
        (0, 0, 2, (2, 1)),
        (0, 0, 3, (1, 3)),
        (0, 0, 4, (2, 2)),
        (0, 0, 6, (2, 3)),
        (0, 2, 8, (4, 2)),
        (0, 8, 8, (1, 8)),
        (4, 0, 8, (4, 2)),
        (1, 0, 8, (1, 8)),
        (2, 2, 4, (2, 2)),
    ] {
        let mesh = resolve(tp, dp, world).unwrap();
        assert_eq!((mesh.degree(Axis::Tp), mesh.degree(Axis::Dp)), chosen, "tp {tp}, dp {dp}, {world} ranks");
    }
}

#[test]
fn models_that_cannot_be_halved_are_replicated() {
    let mesh = Mesh::resolve(&ParallelConfig::default(), 4, &architecture(3, 3)).unwrap();
    assert_eq!(mesh.degrees(), Degrees { dp: 4, ..Degrees::default() });
}

#[test]
fn impossible_products_name_the_nearest_legal_choice() {
    for (tp, dp, world, message) in [
        (3, 0, 4, "pp 1 × dp any × cp 1 × tp 3 cannot make 4 ranks; pp 1 × dp 2 × cp 1 × tp 2 would"),
        (2, 4, 4, "pp 1 × dp 4 × cp 1 × tp 2 = 8 cannot make 4 ranks; pp 1 × dp 2 × cp 1 × tp 2 would"),
        // dp 2 and dp 4 are equally near; the fewer tensor parts win.
        (0, 3, 4, "pp 1 × dp 3 × cp 1 × tp any cannot make 4 ranks; pp 1 × dp 4 × cp 1 × tp 1 would"),
        (2, 0, 1, "pp 1 × dp any × cp 1 × tp 2 cannot make 1 rank; pp 1 × dp 1 × cp 1 × tp 1 would"),
        (0, 5, 4, "pp 1 × dp 5 × cp 1 × tp any cannot make 4 ranks; pp 1 × dp 4 × cp 1 × tp 1 would"),
    ] {
        assert_eq!(resolve(tp, dp, world).unwrap_err().to_string(), message);
    }
}

#[test]
fn degrees_that_cannot_cut_the_model_are_refused() {
    assert_eq!(
        resolve(8, 0, 8).unwrap_err().to_string(),
        "model.heads 4 cannot be cut in 8 (parallel.tp); parallel.tp may be 1, 2 or 4"
    );
    // A given dp leaves tp no choice.
    assert!(matches!(resolve(0, 1, 8), Err(Error::NotDivisible { parts: 8, .. })));
}

#[test]
fn stages_leave_the_rest_to_the_other_axes() {
    let resolve = |pp, world| {
        let config = ParallelConfig { pp, ..ParallelConfig::default() };
        Mesh::resolve(&config, world, &architecture(4, 4)).map(|mesh| mesh.degrees())
    };
    assert_eq!(resolve(2, 8).unwrap(), Degrees { pp: 2, dp: 2, tp: 2, ..Degrees::default() });
    assert_eq!(resolve(4, 4).unwrap(), Degrees { pp: 4, ..Degrees::default() });
    let Err(Error::WorldSize { legal, .. }) = resolve(3, 4) else { panic!("three stages of four ranks") };
    assert_eq!(legal, Degrees { dp: 1, tp: 4, ..Degrees::default() });
}

#[test]
fn malformed_meshes_are_refused() {
    let one = Degrees::default();
    assert_eq!(Mesh::new(Degrees { dp: 0, ..one }), Err(Error::Zero { what: "dp" }));
    assert_eq!(Mesh::new(Degrees { dp: 2, ep: 3, ..one }), Err(Error::ExpertDegree { ep: 3, dp: 2, cp: 1 }));
    for huge in [Degrees { dp: usize::MAX, tp: 2, ..one }, Degrees { dp: 1 << 31, ..one }] {
        assert!(matches!(Mesh::new(huge), Err(Error::TooLarge { .. })));
    }
    assert!(serde_json::from_str::<Mesh>(r#"{"dp":0}"#).is_err());
    assert!(matches!(resolve(0, 0, 0), Err(Error::Zero { what: "ranks" })));
    assert!(matches!(resolve(usize::MAX, usize::MAX, 4), Err(Error::WorldSize { .. })));
}

#[test]
fn the_plane_of_data_ranks_is_a_group_of_its_own() {
    let mesh = Mesh::new(Degrees { pp: 2, dp: 3, cp: 2, tp: 2, ep: 1 }).unwrap();
    for rank in 0..mesh.size() {
        let (color, key) = mesh.data_split_key(rank);
        let own = mesh.coordinates(rank);
        let peers: Vec<usize> = (0..mesh.size()).filter(|&peer| mesh.data_split_key(peer).0 == color).collect();
        assert_eq!(peers.len(), 6);
        assert!(peers.iter().all(|&peer| (mesh.coordinates(peer).pp, mesh.coordinates(peer).tp) == (own.pp, own.tp)));
        assert_eq!(peers[key as usize], rank);
    }
}
