//! Cuts a model of 10⁹ parameters in 100 parts of about 10⁷ each, and checks that the parts make up the whole.
//!
//! `cargo run -p mp-plan --example hundred_parts`

use mp_plan::{Architecture, Degrees, Mesh, ModelConfig, Partition, PartitionedParameter, Plan, Precision, Storage};

const PARTS: usize = 100;

fn main() -> mp_plan::Result<()> {
    // Heads and MLP columns come in hundreds; 50 key/value heads make two ranks share one.
    let config = ModelConfig { hidden: 3200, layers: 8, heads: 100, kv_heads: 50, ffn: 9800, ..ModelConfig::default() };
    let architecture = Architecture::resolve(&config, 257, 2048)?;
    let mesh = Mesh::new(Degrees { tp: PARTS, ..Degrees::default() })?;
    let partition = Partition::new(&architecture, &mesh)?;
    let plan = Plan::new(&partition, Storage { precision: Precision::Bf16, moments: 2 });
    print!("{}", plan.table());

    for parameter in &partition.parameters {
        assert!(tiles(parameter), "{}", parameter.spec.name);
    }
    assert!((0.99e9..1.01e9).contains(&(plan.elements as f64)));
    // Keys and values held twice are a twelfth of what the model has.
    assert!((0.9e7..1.1e7).contains(&(plan.rank_elements as f64)));
    let parts = plan.rank_elements * PARTS;
    println!("\n{PARTS} parts store {parts} elements: {} more than the model has, which are", parts - plan.elements);
    println!(
        "the shared keys and values, the norms that every part holds, and 43 rows of padding in each vocabulary table"
    );
    Ok(())
}

/// Checks that every row or column lies on exactly as many ranks as the partition says.
fn tiles(parameter: &PartitionedParameter) -> bool {
    let Some((dim, _)) = parameter.range(0) else {
        return parameter.local_shape() == parameter.spec.shape;
    };
    let mut holders = vec![0; parameter.spec.shape[dim]];
    for (_, range) in (0..PARTS).filter_map(|rank| parameter.range(rank)) {
        holders[range].iter_mut().for_each(|count| *count += 1);
    }
    holders.iter().all(|&count| count == parameter.replicas())
}

#[test]
fn runs() {
    main().unwrap();
}
