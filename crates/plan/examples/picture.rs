//! Draws a step of a model of seven billion parameters on a node of eight devices: the picture of the handbook.
//!
//! `cargo run -p mp-plan --example picture > docs/results/timeline.svg`

use mp_plan::{
    search, Analytic, Architecture, Cluster, ContextForm, Executor, Job, ModelConfig, Page, ParallelConfig, Precision,
    Result, ScheduleName, Space, Switch,
};

fn main() -> Result<()> {
    print!("{}", picture()?);
    Ok(())
}

fn picture() -> Result<String> {
    let model = ModelConfig { hidden: 4096, layers: 32, heads: 32, ffn: 11008, ..ModelConfig::default() };
    let job = Job {
        architecture: Architecture::resolve(&model, 32_000, 4096)?,
        seq: 4096,
        global_batch: 32,
        precision: Precision::Bf16,
        moments: 2,
        bucket_elements: 10_000_000,
        context: ContextForm::Ring,
        within_documents: false,
        split: Vec::new(),
        executor: Executor::ENGINE,
    };
    let cluster = Cluster::preset("h100").expect("a preset by its name").with_ranks(8);
    let asked = ParallelConfig {
        tp: 2,
        pp: 4,
        chunks: 2,
        micro_batch: 4,
        schedule: Switch::Set(ScheduleName::Interleaved),
        ..ParallelConfig::default()
    };
    let costs = Analytic::new(&cluster);
    let found = search(&job, &cluster, &costs, &Space::of(&job, 8).fixed(&asked), 8, 1)?;
    Ok(Page::of_found(&job, &cluster, &costs, &found)?.timeline_svg())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_picture_of_the_handbook_is_what_is_drawn() {
        let drawn = include_str!("../../../docs/results/timeline.svg");
        assert!(
            super::picture().unwrap() == drawn,
            "docs/results/timeline.svg is of another time; see the example's head"
        );
    }
}
