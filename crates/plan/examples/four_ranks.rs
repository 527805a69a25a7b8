//! Plans the default model on four ranks from what a user would type, asks for one that cannot be, and shows what a
//! program that lays parameters out would read.
//!
//! `cargo run -p mp-plan --example four_ranks`

use mp_plan::{
    sequence_parallel, Architecture, Axis, Mesh, ModelConfig, ParallelConfig, Partition, Plan, Storage, Switch,
};

fn main() -> mp_plan::Result<()> {
    let seq = 128;
    let architecture = Architecture::resolve(&ModelConfig::default(), 257, seq)?;
    let mesh = Mesh::resolve(&ParallelConfig::default(), 4, &architecture)?;
    let partition = Partition::new(&architecture, &mesh)?;
    print!("{}", Plan::new(&partition, Storage { precision: Default::default(), moments: 2 }).table());

    let along_sequence = sequence_parallel(Switch::Auto, seq, mesh.degree(Axis::Cp), mesh.degree(Axis::Tp))?;
    println!("\nrank 3 shares matrices with ranks {:?}", mesh.group(Axis::Tp, 3));
    println!("rank 3 averages gradients with ranks {:?}", mesh.group(Axis::Dp, 3));
    println!("activations are cut along the sequence: {along_sequence}");
    for name in ["layers.0.mlp.down.weight", "layers.0.mlp_norm.weight"] {
        let parameter = partition.get(name).expect("every llama has one");
        let range = parameter.range(mesh.coordinate(Axis::Tp, 3));
        let sync = parameter.gradient_sync(along_sequence);
        println!("{name}: stored {:?}, range {range:?}, gradient {sync:?}", parameter.local_shape());
    }

    let three = ParallelConfig { tp: 3, ..ParallelConfig::default() };
    let refusal = Mesh::resolve(&three, 4, &architecture).expect_err("three does not divide four");
    println!("\ntp 3 on four ranks: {refusal}");
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
