//! `verify` as a user starts it: alone, under mpirun, with a list, and with what cannot be.

use std::fs;

use crate::common::{alone, ranks};

#[test]
fn two_ranks_verify_a_list_in_a_table_and_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let ended = ranks(2, folder.path(), &["verify", "--layouts", "tp2 sp,dp2zero3", "--json", "v.json"]).success();
    let rows: Vec<&str> = ended.out.lines().filter(|line| line.contains("  ok  ")).collect();
    assert!(rows.len() == 2 && rows[0].starts_with("1 of 2  tp2 sp "), "{ended:#?}");
    assert!(rows[1].starts_with("2 of 2  dp2zero3 "), "{ended:#?}");
    assert!(ended.out.contains("all 2 layouts compute what one rank computes"), "{ended:#?}");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(folder.path().join("v.json")).unwrap()).unwrap();
    assert_eq!(json["pass"], true);
    for (layout, name) in json["layouts"].as_array().unwrap().iter().zip(["tp2 sp", "dp2zero3"]) {
        assert_eq!((layout["layout"].as_str(), &layout["pass"]), (Some(name), &true.into()));
        assert!(layout["worst"].as_f64().unwrap() < 1e-10, "{layout}");
        assert!(layout["tensor"].is_string() && layout["noise"].as_f64().unwrap() > 0.0, "{layout}");
    }
}

#[test]
fn one_rank_says_how_little_it_can_show() {
    let folder = tempfile::tempdir().unwrap();
    let ended = alone(folder.path(), &["verify", "--json"]).success();
    assert!(ended.err.contains("one rank can show little"), "{ended:#?}");
    let json: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(json["layouts"].as_array().unwrap().len(), 6, "{ended:#?}");
}

#[test]
fn the_configured_layout_is_a_row_or_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["verify", "--layouts", "configured", "--set", "parallel.tp=1", "--set", "parallel.zero=1"];
    let ended = ranks(2, folder.path(), &words).success();
    assert!(ended.out.contains("1 of 1  configured (dp2zero1 mb1)  "), "{ended:#?}");
    assert!(ended.out.contains("the layout computes what one rank computes ("), "{ended:#?}");
    let ended = alone(folder.path(), &["verify", "--set", "parallel.tp=2"]).success();
    assert!(
        ended.out.contains("the configured layout is none of them: pp 1 × dp any × cp 1 × tp 2 cannot make 1 rank"),
        "{ended:#?}"
    );
    assert!(ended.out.contains("; the configured layout was not run"), "{ended:#?}");
}

#[test]
fn what_cannot_be_is_refused_once() {
    let folder = tempfile::tempdir().unwrap();
    for (layouts, why) in [
        ("tp2 fast", "tp2pp2,dp4zero3"),
        ("tp4", "takes 4 ranks, and there are 2; start it on 4 or more (mpirun -n 4)"),
        ("tp2zero1", "parallel.zero 1"),
        ("tp2tp4", "\"tp2\" and \"tp4\" in it both say the tensor degree"),
    ] {
        let ended = ranks(2, folder.path(), &["verify", "--layouts", layouts]);
        assert!(ended.input_error().contains(why), "{ended:#?}");
    }
    let ended = alone(folder.path(), &["verify", "--set", "model.heads=3"]);
    assert!(ended.input_error().contains("model.heads"), "{ended:#?}");
}
