//! Clusters as they are written and refused.

use mp_plan::cluster::measured::{CollectivePoints, Points};
use mp_plan::{Analytic, Cluster, Collective, CostModel, Precision};

#[test]
fn presets_are_possible_and_survive_being_written() {
    for name in Cluster::PRESETS {
        let cluster = Cluster::preset(name).unwrap();
        cluster.check().unwrap();
        let text = toml::to_string(&cluster).unwrap();
        assert_eq!(toml::from_str::<Cluster>(&text).unwrap(), cluster, "{text}");
    }
    let error = Cluster::preset("abacus").unwrap_err().to_string();
    assert_eq!(error, "cluster \"abacus\" is neither a file nor one of a100-80, h100, h200, cpu");
}

#[test]
fn unknown_keys_are_refused() {
    for (from, to) in [("bandwidth", "bandwith"), ("bf16", "int8"), ("matrix_half", "matrix_third")] {
        let text = toml::to_string(&Cluster::preset("h100").unwrap()).unwrap().replacen(from, to, 1);
        assert!(toml::from_str::<Cluster>(&text).unwrap_err().to_string().contains(to), "{to}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_key() {
    type Change = fn(&mut Cluster);
    let changes: [(&str, Change); 14] = [
        ("node.devices is 0", |cluster| cluster.node.devices = 0),
        ("node.bandwidth is -1", |cluster| cluster.node.bandwidth = -1.0),
        ("device.peak.bf16 is inf", |cluster| cluster.device.peak.bf16 = Some(f64::INFINITY)),
        ("network.latency is NaN", |cluster| cluster.network.latency = f64::NAN),
        // Finite, and no plan made of them would be.
        ("device.peak.bf16 is 1e-300", |cluster| cluster.device.peak.bf16 = Some(1e-300)),
        ("node.bandwidth is 1e-305", |cluster| cluster.node.bandwidth = 1e-305),
        ("network.latency is 1e308", |cluster| cluster.network.latency = 1e308),
        ("efficiency.launch is 1e308", |cluster| cluster.efficiency.launch = 1e308),
        ("efficiency.matrix_half is 1e300", |cluster| cluster.efficiency.matrix_half = 1e300),
        ("efficiency.matrix is 1.5", |cluster| cluster.efficiency.matrix = 1.5),
        ("efficiency.program is 0", |cluster| cluster.efficiency.program = 0.0),
        ("efficiency.overlap is -0.5", |cluster| cluster.efficiency.overlap = -0.5),
        ("device.memory_bytes is 0", |cluster| cluster.device.memory_bytes = 0),
        ("measured.collectives.ranks is 4", |cluster| {
            let group = |seconds| {
                let points = vec![[1e3, seconds]];
                CollectivePoints { what: Collective::AllReduce, ranks: 4, neighbours: 2, points }
            };
            cluster.measured = Some(Points { collectives: vec![group(1.0), group(2.0)], ..Points::default() });
        }),
    ];
    for (message, change) in changes {
        let mut cluster = Cluster::preset("h100").unwrap();
        change(&mut cluster);
        let error = cluster.check().unwrap_err().to_string();
        assert!(error.starts_with(&format!("cluster: {message}, and must ")), "{error}");
    }
}

/// Memory counts attention without dropout as fused, and so does time, on every machine.
#[test]
fn every_machine_has_fused_attention() {
    for name in Cluster::PRESETS {
        let mut cluster = Cluster::preset(name).unwrap();
        assert!(Analytic::new(&cluster).attention(1e12, Precision::Fp32).is_some(), "{name}");
        cluster.efficiency.attention = 0.0;
        let error = cluster.check().unwrap_err().to_string();
        assert!(error.starts_with("cluster: efficiency.attention is 0, and must be a share above 0"), "{error}");
    }
    let text = toml::to_string(&Cluster::preset("a100-80").unwrap()).unwrap();
    let (machine, _) = text.split_once("[efficiency]").unwrap();
    let cluster: Cluster = toml::from_str(machine).unwrap();
    assert_eq!(cluster.efficiency, Cluster::preset("a100-80").unwrap().efficiency);
}

#[test]
fn ranks_of_a_host_share_its_memory() {
    let mut cluster = Cluster::preset("cpu").unwrap();
    assert_eq!(cluster.ranks(), 8);
    assert_eq!(cluster.device.peak.of(Precision::Bf16), None);
    cluster.efficiency.reserve = 0.0;
    assert_eq!(cluster.rank_memory(), 32 << 30);
    cluster.device.memory_bytes = 1 << 30;
    assert_eq!(cluster.rank_memory(), 1 << 30);
}
