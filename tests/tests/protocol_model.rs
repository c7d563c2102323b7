//! The model of the commit protocol holds in small bounds, and fails as soon as a rule is left out.

use strongroom_tests::model::configs::all;
use strongroom_tests::model::mutants::MUTANTS;
use strongroom_tests::model::run::{check, check_mutant};

#[test]
fn small_configurations_hold() {
    for name in ["two collectors", "restore", "names", "copies lost"] {
        let bounds = all().into_iter().find(|bounds| bounds.config.name == name).expect("it is listed");
        let outcome = check(&bounds, 2);
        assert!(outcome.exhausted, "{name}: {outcome:?}");
        assert!(outcome.is_sound(), "{name}: {outcome:?}");
    }
}

#[test]
fn every_mutant_is_caught() {
    for mutant in MUTANTS {
        let outcome = check_mutant(mutant).expect("its configuration is listed");
        assert!(!outcome.violations.is_empty(), "{} is not caught: {}", mutant.name, mutant.what);
    }
}
