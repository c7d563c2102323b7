//! `target …`.

use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};
use strongroom_format::keyring::{KekDescriptor, Keyring, MAX_KEYRING_BYTES, Purpose, TargetSettings};
use strongroom_format::layout::ObjectKey;
use strongroom_format::secrets::Secret32;
use strongroom_store::StoreErrorKind;
use strongroom_vault::target::{InitOptions, KekProvider, init};
use strongroom_vault::{Target, VaultError, VaultResult};

use super::Done;
use crate::cli::{InitArgs, RecoveryKitArgs, RotateArgs, TargetCommand};
use crate::keys::{KeyFile, KeyInHand, Passphrase, key_line, write_secret_file};
use crate::open::Settings;
use crate::output::{Output, bytes, time};

/// The word before the keyring's copy in a recovery kit.
const KEYRING_WORD: &str = "# keyring ";
/// Hexadecimal digits on a line of a kit.
const DIGITS_PER_LINE: usize = 96;

pub async fn run(settings: &Settings, command: TargetCommand, output: Output) -> VaultResult<Done> {
    match command {
        TargetCommand::Init(args) => initialise(settings, &args, output).await,
        TargetCommand::Show => show(settings, output).await,
        TargetCommand::List => {
            list(settings, output);
            Ok(Done::Well)
        }
        TargetCommand::Rotate(args) => rotate(settings, &args, output).await,
        TargetCommand::ExportRecoveryKit(args) => export_kit(settings, &args, output).await,
        TargetCommand::AcceptRollback => accept_rollback(settings, output).await,
        TargetCommand::RestoreKeyring { kit } => restore_keyring(settings, &kit, output).await,
    }
}

async fn initialise(settings: &Settings, args: &InitArgs, output: Output) -> VaultResult<Done> {
    let mut global = settings.global.clone();
    global.target = args.place.clone().or(global.target);
    let settings = Settings::load(global)?;
    let kek = settings.kek(true).await?;
    let (context, _) = settings.context(true).await?;
    let defaults = InitOptions::default();
    let options = InitOptions {
        chunker: args.chunker.unwrap_or(defaults.chunker),
        pack_bytes: args.pack_mib << 20,
        zstd_level: args.zstd_level,
        dedup_across_hosts: !args.dedup_within_host,
        grace_ms: args.grace.0,
    };
    let target = init(context, kek.as_ref(), options).await?;
    if let Some(path) = &settings.global.key_file {
        output.say(&format!(
            "the key is in {}: without it the backups can't be read by anyone. Keep a copy elsewhere:\n  \
             strongroom target export-recovery-kit",
            path.display()
        ));
    }
    let place = settings.global.target.unwrap_or_default();
    output.result(
        &format!("target {} initialised at {place}, chunker {}", target.id(), target.settings.chunker),
        &json!({ "event": "target_init", "id": target.id(), "target": place, "chunker": target.settings.chunker.to_string() }),
    );
    Ok(Done::Well)
}

fn kek_text(descriptor: &KekDescriptor) -> String {
    match descriptor {
        KekDescriptor::KeyFile { fingerprint } => {
            format!("key file {}", fingerprint.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
        KekDescriptor::Passphrase { memory_kib, passes, lanes, .. } => {
            format!("passphrase (Argon2id, {} MiB, {passes} passes, {lanes} lanes)", memory_kib / 1024)
        }
        KekDescriptor::Kms { key_id, .. } => format!("AWS KMS {key_id}"),
    }
}

const fn purpose_text(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Catalog => "catalog",
        Purpose::Ingest => "ingest",
        Purpose::Restore => "restore",
    }
}

async fn show(settings: &Settings, output: Output) -> VaultResult<Done> {
    let (target, _) = settings.target().await?;
    let head = target.head().await?;
    let TargetSettings { chunker, pack_bytes, zstd_level, dedup_across_hosts, grace_ms, created } =
        target.settings;
    let keys: Vec<(&str, String)> =
        target.wraps().iter().map(|wrap| (purpose_text(wrap.purpose), kek_text(&wrap.kek))).collect();
    let mut text = vec![
        format!("target      {}", target.id()),
        format!("created     {}", time(created)),
        format!("chunker     {chunker}"),
        format!("packs       {}, zstd level {zstd_level}", bytes(u64::from(pack_bytes))),
        format!(
            "duplicates  found {}",
            if dedup_across_hosts { "across hosts" } else { "within each host only" }
        ),
        format!("grace       {} hours", grace_ms / 3_600_000),
        format!("catalog     epoch {} of incarnation {}", head.root.epoch, head.root.incarnation),
        format!("backups     {} of {} volumes", head.root.backups().count(), head.root.volumes.len()),
    ];
    text.extend(keys.iter().map(|(purpose, kek)| format!("opens       {purpose:8} with {kek}")));
    let event = json!({
        "event": "target", "id": target.id(), "created": time(created), "chunker": chunker.to_string(),
        "pack_bytes": pack_bytes, "zstd_level": zstd_level, "dedup_across_hosts": dedup_across_hosts,
        "grace_ms": grace_ms, "epoch": head.root.epoch, "incarnation": head.root.incarnation,
        "volumes": head.root.volumes.len(), "backups": head.root.backups().count(),
        "keys": keys.iter().map(|(purpose, kek)| json!({ "purpose": purpose, "kek": kek })).collect::<Vec<Value>>(),
    });
    output.result(&text.join("\n"), &event);
    Ok(Done::Well)
}

fn list(settings: &Settings, output: Output) {
    for (name, named) in &settings.targets {
        output.result(
            &format!("{name:20} {}", named.target),
            &json!({ "event": "target", "name": name, "target": named.target }),
        );
    }
    if settings.targets.is_empty() {
        output.say("the configuration file names no targets; add [targets.NAME] with target = \"…\" to it");
    }
}

async fn accept_rollback(settings: &Settings, output: Output) -> VaultResult<Done> {
    let (target, _) = settings.target().await?;
    let (seen, now) = target.accept_root().await?;
    let text = match seen {
        Some(seen) if seen > now => {
            format!("accepted the catalog at epoch {now}; this host had seen epoch {seen}")
        }
        _ => format!("nothing was put back: the catalog is at epoch {now}"),
    };
    output.result(&text, &json!({ "event": "target_accept_rollback", "seen": seen, "epoch": now }));
    Ok(Done::Well)
}

async fn rotate(settings: &Settings, args: &RotateArgs, output: Output) -> VaultResult<Done> {
    let (target, _) = settings.target().await?;
    let from = settings.kek(false).await?;
    let to: Box<dyn KekProvider> = if let Some(path) = &args.new_key_file {
        Box::new(KeyFile::created(path.clone()))
    } else if let Some(path) = &args.new_passphrase_file {
        Box::new(Passphrase::read(path)?)
    } else if let Some(key_id) = &args.new_kms_key {
        Box::new(settings.kms(key_id, args.new_restore_kms_key.as_deref()).await)
    } else {
        return Err(VaultError::Invalid(
            "no new key given: say --new-key-file FILE, --new-passphrase-file FILE or --new-kms-key KEY"
                .to_owned(),
        ));
    };
    let target = target.rotate(from.as_ref(), to.as_ref(), !args.keep_old).await?;
    output.result(
        if args.keep_old {
            "the new key opens the target as well"
        } else {
            "the new key opens the target, the old one no longer"
        },
        &json!({ "event": "target_rotate", "id": target.id(), "wraps": target.wraps().len() }),
    );
    Ok(Done::Well)
}

async fn export_kit(settings: &Settings, args: &RecoveryKitArgs, output: Output) -> VaultResult<Done> {
    let (target, _) = settings.target().await?;
    let from = settings.kek(false).await?;
    let key = target.context.entropy.with(Secret32::random);
    // The old key goes on working beside the recovery key.
    let target = target.rotate(from.as_ref(), &KeyInHand(key.clone()), false).await?;
    let keyring = target.context.store.get(&ObjectKey::Keyring, MAX_KEYRING_BYTES).await?;
    let kit = kit_text(&target, settings.global.target.as_deref().unwrap_or_default(), &key, &keyring.bytes);
    match &args.output {
        Some(path) => {
            write_secret_file(path, &kit)?;
            output.say(&format!(
                "recovery kit written to {}; print it, store it safely, delete the file",
                path.display()
            ));
            output.result("", &json!({ "event": "recovery_kit", "file": path.display().to_string() }));
        }
        None => output.result(kit.trim_end(), &json!({ "event": "recovery_kit", "kit": kit })),
    }
    Ok(Done::Well)
}

fn kit_text(target: &Target, place: &str, key: &Secret32, keyring: &[u8]) -> String {
    let digits: Vec<u8> = keyring.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
    let copy: String = digits
        .chunks(DIGITS_PER_LINE)
        .map(|line| format!("{KEYRING_WORD}{}\n", String::from_utf8_lossy(line)))
        .collect();
    format!(
        "# Strongroom recovery kit. Whoever has it can read every backup of this target. Print it, lock it away.\n\
         # target {} at {place}\n\
         # made {}\n\
         #\n\
         # To use it: put this page (or just the line of the key) into a file and give it as --key-file FILE.\n\
         # Should the target's object 'keyring' be lost: strongroom target restore-keyring FILE\n\
         {}\n#\n# Copy of the keyring, of no use without a key:\n{copy}",
        target.id(),
        time(target.context.clock.now()),
        key_line(key).as_str()
    )
}

async fn restore_keyring(settings: &Settings, kit: &Path, output: Output) -> VaultResult<Done> {
    let text = std::fs::read_to_string(kit).map_err(|error| VaultError::io("reading", kit, error))?;
    let digits: String =
        text.lines().filter_map(|line| line.strip_prefix(KEYRING_WORD)).map(str::trim).collect();
    let bytes = hex::decode(digits.as_bytes())
        .ok()
        .filter(|bytes| !bytes.is_empty())
        .ok_or_else(|| VaultError::Invalid(format!("{}: has no copy of a keyring in it", kit.display())))?;
    let keyring = Keyring::parse(&bytes)?;
    let (context, _) = settings.context(false).await?;
    context.store.put_if_absent(&ObjectKey::Keyring, Bytes::from(bytes)).await.map_err(|error| {
        if error.kind == StoreErrorKind::Conflict {
            return VaultError::Unsafe(
                "the target has a keyring; delete it first if you are sure it is lost".to_owned(),
            );
        }
        error.into()
    })?;
    output.result(
        &format!("keyring of target {} put back", keyring.target()),
        &json!({ "event": "restore_keyring", "id": keyring.target() }),
    );
    Ok(Done::Well)
}
