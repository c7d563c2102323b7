//! Texts that come from a listing or a user: keys, ids, chunker parameters, volume names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_format::chunker::ChunkerParams;
use strongroom_format::ids::{BackupId, ChunkId, VolumeTag};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_format::manifest::check_volume_name;
use strongroom_fuzz::{WORLD, allowance, memory};

fuzz_target!(|text: &str| {
    memory::within(allowance(text.len(), 0), || {
        if let Some(key) = ObjectKey::parse(text) {
            assert_eq!(key.to_string(), text);
        }
        if let Ok(id) = text.parse::<ChunkId>() {
            assert_eq!(id.to_string(), text);
        }
        if let Ok(id) = text.parse::<BackupId>() {
            assert_eq!(id.to_string(), text);
        }
        if let Ok(params) = text.parse::<ChunkerParams>() {
            assert_eq!(params.to_string().parse(), Ok(params));
            assert!(params.validated().is_ok());
        }
        if let Err(reason) = check_volume_name(text) {
            assert!(reason.chars().count() < 2000);
        }
        let tag: VolumeTag = WORLD.sealer.volume_tag(text);
        assert_eq!(KeyPrefix::InboxOfVolume(tag).to_string().len(), 6 + 12);
    });
});
