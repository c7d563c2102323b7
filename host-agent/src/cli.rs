//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use strongroom_catalog::retention::Rate;
use strongroom_fleet::text::millis;
use strongroom_fleet::volume::Member;
use strongroom_format::chunker::ChunkerParams;
use strongroom_vault::restore::DEFAULT_FETCHES;

use crate::host::{RestoreTo, Volume};
use crate::version;

/// Encrypted, deduplicated backup of block volumes to S3 or a folder, without a server.
#[derive(Debug, Parser)]
#[command(
    name = "strongroom",
    version = version::text(),
    propagate_version = true,
    after_help = "Exit codes: 0 done; 1 failed; 2 wrong use; 3 data damaged or missing; 4 refused for safety; \
                  5 target unreachable or denied.\n\n\
                  First steps:\n  strongroom demo\n  \
                  export STRONGROOM_TARGET=file:///srv/backup STRONGROOM_KEY_FILE=$HOME/strongroom.key\n  \
                  strongroom target init\n  strongroom backup /var/lib/images/vm1.img --volume vm1\n  \
                  strongroom ls\n  strongroom restore vm1@latest /tmp/vm1.img"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands. Each can also stand in the configuration file.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of all commands")]
pub struct Global {
    /// The target: file:///path or s3://bucket/prefix
    #[arg(long, global = true, env = "STRONGROOM_TARGET", value_name = "TARGET")]
    pub target: Option<String>,
    /// File with the key that opens the target
    #[arg(long, global = true, env = "STRONGROOM_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// File whose first line is the passphrase that opens the target (or set STRONGROOM_PASSPHRASE)
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "key_file")]
    pub passphrase_file: Option<PathBuf>,
    /// AWS KMS key that opens the target: id, alias/NAME or ARN
    #[arg(long, global = true, env = "STRONGROOM_KMS_KEY", value_name = "KEY", conflicts_with = "key_file")]
    pub kms_key: Option<String>,
    /// AWS KMS key of the restore secrets, if it is not that of --kms-key
    #[arg(long, global = true, env = "STRONGROOM_RESTORE_KMS_KEY", value_name = "KEY")]
    pub restore_kms_key: Option<String>,
    /// S3 endpoint other than AWS, such as http://127.0.0.1:4566
    #[arg(long, global = true, env = "AWS_ENDPOINT_URL", value_name = "URL")]
    pub endpoint_url: Option<String>,
    /// AWS region, where the environment does not tell
    #[arg(long, global = true, value_name = "REGION")]
    pub region: Option<String>,
    /// Prints one JSON event a line on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Says nothing but errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Says more; twice for everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Prints how many requests were sent to the store
    #[arg(long, global = true)]
    pub requests: bool,
    /// Configuration file [default: strongroom/config.toml in $XDG_CONFIG_HOME or ~/.config, then /etc]
    #[arg(long, global = true, env = "STRONGROOM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for the local index cache; always safe to delete [default: strongroom in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, global = true, env = "STRONGROOM_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Folder where the newest catalog seen is remembered, to notice an older one [default: strongroom in
    /// $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, global = true, env = "STRONGROOM_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What this host calls itself in packs and manifests [default: its host name]
    #[arg(long, global = true, env = "STRONGROOM_HOST", value_name = "NAME")]
    pub host: Option<String>,
    /// The most that is sent to the store a second, such as 20MiB [default: no limit]
    #[arg(long, global = true, env = "STRONGROOM_UPLOAD_LIMIT", value_name = "BYTES", value_parser = parse_bytes)]
    pub upload_limit: Option<u64>,
    /// The most that is read from the store a second, such as 50MiB [default: no limit]
    #[arg(long, global = true, env = "STRONGROOM_DOWNLOAD_LIMIT", value_name = "BYTES", value_parser = parse_bytes)]
    pub download_limit: Option<u64>,
    /// The fleet's queues: file:///path to a folder, or sqs://PREFIX
    #[arg(long, global = true, env = "STRONGROOM_QUEUES", value_name = "QUEUES")]
    pub queues: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows everything once, in a temporary folder: back up, change, retain, collect, restore, compare
    Demo(DemoArgs),
    /// Makes and looks after targets and their keys
    #[command(subcommand)]
    Target(TargetCommand),
    /// Backs up a file, a block device, or standard input; several volumes of one machine as of one moment
    #[command(
        after_help = "Volumes that are backed up together are snapshotted in one moment: by a running machine (disks of one socket), a pool \
                      of ZFS, or anywhere while the guest stands still (--guest-agent). Each has a backup of its own; all name one \
                      group, which `strongroom ls --group` lists.\n\n\
                      Examples:\n  \
                      strongroom backup /var/lib/images/vm1.img --volume vm1\n  \
                      strongroom backup qemu:qcow2:vm1.qcow2 --volume vm1 --track-changes\n  \
                      strongroom backup zfs:tank/vms/db --volume db --with db-log=zfs:tank/vms/log\n  \
                      strongroom backup qmp:/run/vm1.qmp:disk0 --volume vm1 --with vm1-data=qmp:/run/vm1.qmp:disk1\n  \
                      pg_dump db | strongroom backup - --volume db-dump"
    )]
    Backup(BackupArgs),
    /// Restores a backup, whole or a range of it
    #[command(
        after_help = "A file, an image or a new volume appears when it is complete. A device or export that is there is written over, from its start on; \
                      one that is in use is refused. If that fails, the error says that it is INCOMPLETE, and its first 8 MiB \
                      are zeros.\n\n\
                      Examples:\n  \
                      strongroom restore vm1@latest /var/lib/images/vm1.img\n  \
                      strongroom restore vm1@latest /dev/vg0/vm1\n  \
                      strongroom restore vm1@latest qemu:qcow2:/var/lib/images/vm1.qcow2\n  \
                      strongroom restore vm1@latest 'nbd+unix:///disk?socket=/run/qsd.sock'\n  \
                      strongroom restore vm1@latest lvm-thin:vg0/pool/vm1-restored\n  \
                      strongroom restore vm1@latest mbr --range 0+512"
    )]
    Restore(RestoreArgs),
    /// Serves a backup as a network block device, to boot a machine from it or mount it without restoring it first
    #[command(
        after_help = "Prints the address once clients can connect, and serves until it is stopped. What is read is fetched then, \
                      checked, and kept in the cache; what a damaged pack held reads as an input/output error, never as \
                      other bytes. The backup itself is never changed.\n\n\
                      Examples:\n  \
                      strongroom serve vm1@latest --socket /run/vm1.sock\n  \
                      qemu-img convert -O qcow2 'nbd+unix:///?socket=/run/vm1.sock' vm1.qcow2\n  \
                      qemu-img map --output json 'nbd+unix:///?socket=/run/vm1.sock'\n\n  \
                      strongroom serve vm1@latest --socket /run/vm1.sock --overlay /var/tmp/vm1.overlay\n  \
                      qemu-system-x86_64 -accel kvm -m 2G -drive 'file=nbd+unix:///?socket=/run/vm1.sock,format=raw,if=virtio'\n\n  \
                      strongroom serve vm1@latest --listen 127.0.0.1:10809\n  \
                      nbd-client -R -N '' 127.0.0.1 10809 /dev/nbd0 && mount -o ro /dev/nbd0p1 /mnt"
    )]
    Serve(ServeArgs),
    /// Lists and extracts single files of the machine that is in a backup, without mounting it
    #[command(
        after_help = "Without PATH it shows the partitions; with PATH, what is in that folder, or the line of that file. Reads ext2, \
                      ext3, ext4 and FAT; needs neither root nor other programs. Only what is looked at is fetched. What a journal \
                      holds counts, as after a crash.\n\n\
                      Permissions and times of modification are kept, setuid and owners are not. Symbolic links are made as they are, \
                      devices, pipes and sockets are left out. A file has its name once it is whole, and not before. Nothing is \
                      replaced without --overwrite.\n\n\
                      Examples:\n  \
                      strongroom browse vm1@latest\n  \
                      strongroom browse vm1@latest /etc --partition 2\n  \
                      strongroom browse vm1@latest /etc/fstab --partition 2 --extract -\n  \
                      strongroom browse vm1@latest /home/ada --partition 2 --extract ./ada"
    )]
    Browse(BrowseArgs),
    /// Lists backups
    Ls(LsArgs),
    /// Shows one backup
    Show(ShowArgs),
    /// Shows which bytes differ between two backups
    Diff(DiffArgs),
    /// Moves backups to the trash
    Delete(BackupNames),
    /// Takes backups out of the trash
    Undelete(BackupNames),
    /// Keeps as many backups as a policy says, and moves the others to the trash
    #[command(subcommand)]
    Retention(RetentionCommand),
    /// Collects garbage: deletes what no backup needs any more
    #[command(subcommand)]
    Gc(GcCommand),
    /// Verifies that backups can be restored
    Verify(VerifyArgs),
    /// Looks after the index
    #[command(subcommand)]
    Index(IndexCommand),
    /// Adds up what is stored
    Stats,
    /// Runs the agent of this host: takes runs off its queue and does them
    Agent,
    /// Runs agent and control plane in one process, without any cloud
    Up(UpArgs),
    /// Asks the fleet for something; prints the run it becomes
    #[command(
        subcommand,
        after_help = "Each request becomes a run, whose end says what came of it, also of a request that was refused.\n\
                      With --wait the exit code tells: 0 it succeeded, 1 it failed.\n\n\
                      Examples:\n  strongroom request backup db --wait\n  \
                      strongroom request restore db@latest /srv/restored/db.img --on-host hv-02 --wait\n  \
                      strongroom request volume-put db --on-host hv-01 --source /dev/vg0/db --cron '15 */6 * * *' --keep-daily 14\n  \
                      strongroom request schedule db --paused true"
    )]
    Request(RequestCommand),
    /// Lists runs, newest first
    Runs(RunsArgs),
    /// Follows runs to their ends; exits with 1 if one failed
    Watch {
        /// Ids of runs
        #[arg(required = true)]
        runs: Vec<String>,
    },
    /// Lists messages that nobody could deal with, and why
    DeadLetters,
    /// Prints a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages, one for each command; for those who make packages
    #[command(hide = true)]
    Man {
        /// The folder they go to, made if it is not there
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Keeps the folder, to look around in it
    #[arg(long)]
    pub keep: bool,
    /// Size of the sample volume, MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=16384))]
    pub size_mib: u32,
}

#[derive(Debug, Subcommand)]
pub enum TargetCommand {
    /// Initialises a target; makes the key file if it is not there
    Init(InitArgs),
    /// Shows a target: its id, settings, keys and catalog
    Show,
    /// Lists the targets of the configuration file
    List,
    /// Puts another key in place of the one that opens the target; data is not touched
    Rotate(RotateArgs),
    /// Adds a recovery key and prints it with all that is needed to open the target again
    ExportRecoveryKit(RecoveryKitArgs),
    /// Accepts a catalog that is older than one this host has seen, after it was restored deliberately
    AcceptRollback,
    /// Puts the keyring back from a recovery kit, where it was lost
    RestoreKeyring {
        /// The recovery kit
        kit: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// The target: file:///path or s3://bucket/prefix
    pub place: Option<String>,
    /// How volumes are cut: fastcdc:AVERAGE finds more duplicates, fixed:SIZE suits databases that write in place
    #[arg(long, value_name = "CHUNKER")]
    pub chunker: Option<ChunkerParams>,
    /// Frame bytes at which a pack is closed, MiB
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub pack_mib: u32,
    /// zstd level of chunks
    #[arg(long, value_name = "LEVEL", default_value_t = strongroom_vault::target::DEFAULT_ZSTD_LEVEL,
          value_parser = clap::value_parser!(i32).range(-7..=19), allow_negative_numbers = true)]
    pub zstd_level: i32,
    /// Deduplicates within each host only, so that a hostile host can't spoil the backups of others
    #[arg(long)]
    pub dedup_within_host: bool,
    /// How long removed backups can be undeleted, such as 7d or 12h
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = parse_duration)]
    pub grace: DurationMs,
}

#[derive(Debug, Args)]
pub struct RotateArgs {
    /// File with the new key; made if it is not there
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,
    /// File whose first line is the new passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    pub new_passphrase_file: Option<PathBuf>,
    /// The new AWS KMS key
    #[arg(long, value_name = "KEY", conflicts_with_all = ["new_key_file", "new_passphrase_file"])]
    pub new_kms_key: Option<String>,
    /// The new AWS KMS key of the restore secrets, if it is not to be that of --new-kms-key
    #[arg(long, value_name = "KEY", requires = "new_kms_key")]
    pub new_restore_kms_key: Option<String>,
    /// Keeps the old key working as well
    #[arg(long)]
    pub keep_old: bool,
}

#[derive(Debug, Args)]
pub struct RecoveryKitArgs {
    /// Writes the kit to this file (readable by its owner only) instead of standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// A file, a block device, or - for standard input; qemu:FORMAT:FILE for an image in another format, such as
    /// qemu:qcow2:vm.qcow2; qmp:SOCKET:NODE for a disk of a running machine; nbd+unix:///NAME?socket=PATH for an export
    pub source: Volume,
    /// The volume's name in the target
    #[arg(long, value_name = "NAME")]
    pub volume: String,
    /// Another volume that is snapshotted in the same moment and backed up with it; may be given several times
    #[arg(long, value_name = "NAME=SOURCE", value_parser = parse_member)]
    pub with: Vec<Member>,
    /// Another chunker than the target's, for this volume
    #[arg(long, value_name = "CHUNKER")]
    pub chunker: Option<ChunkerParams>,
    /// Takes it as said that nothing writes to the volumes until their snapshots are made (or, without one, they are read), as after
    /// a service was stopped: those of --with need nothing then that makes them in one moment
    #[arg(long, conflicts_with = "guest_agent")]
    pub quiesced: bool,
    /// Reads the source as it is, without a snapshot and even if it is written to meanwhile: what is backed up then is there
    /// as of different moments
    #[arg(long)]
    pub live: bool,
    /// Has the guest's filesystems stand still while the snapshot is made, through the socket of its QEMU guest agent
    #[arg(long, value_name = "SOCKET")]
    pub guest_agent: Option<PathBuf>,
    /// Makes the source take note of what changes, so that only that is read (and samples of the rest) the next time: for
    /// qcow2 images and disks of running machines, which get a bitmap for it
    #[arg(long)]
    pub track_changes: bool,
    /// Reads as if for the first time, without the help of the last backup or of what the source took note of
    #[arg(long)]
    pub full_read: bool,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Packs uploaded at once
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub uploads: u16,
    /// Memory of the deduplication index, MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub index_memory_mib: u32,
    /// Disk space of the deduplication index, MiB; what does not fit is sampled
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1<<30))]
    pub index_disk_mib: u64,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// A backup's id, a unique prefix of it, or VOLUME@latest
    pub backup: String,
    /// A file, a block device, or - for standard output; qemu:FORMAT:FILE for a new image in another format, such as
    /// qemu:qcow2:vm.qcow2; nbd+unix:///NAME?socket=PATH for an export; lvm-thin:VG/POOL/LV or zfs:POOL/VOLUME for a new volume
    pub destination: RestoreTo,
    /// Only these bytes of the volume: START-END (END excluded) or START+LENGTH
    #[arg(long, value_name = "RANGE", value_parser = parse_range)]
    pub range: Option<Range<u64>>,
    /// Replaces a file that exists, once the restore is complete
    #[arg(long)]
    pub overwrite: bool,
    /// Serves the volume as a network block device at once, writable, while it is restored to a new file behind; ends once all
    /// is there and nobody is connected
    #[arg(long, conflicts_with = "range")]
    pub live: bool,
    /// With --live: listens on a unix socket, which this user alone may connect to [default: strongroom-ID.sock in this folder]
    #[arg(long, value_name = "PATH", requires = "live")]
    pub socket: Option<PathBuf>,
    /// With --live: listens on a port of the loopback interface, where every user of this machine may connect; port 0 takes a
    /// free one
    #[arg(long, value_name = "ADDRESS:PORT", requires = "live", conflicts_with = "socket")]
    pub listen: Option<SocketAddr>,
    /// With --live: memory for what was read or will be next
    #[arg(long, value_name = "BYTES", default_value = "256MiB", requires = "live", value_parser = parse_bytes)]
    pub cache: u64,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FETCHES, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub fetches: u16,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A backup's id, a unique prefix of it, or VOLUME@latest
    pub backup: String,
    /// Listens on a unix socket, which this user alone may connect to [default: strongroom-ID.sock in this folder]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Listens on a port of the loopback interface, where every user of this machine may connect; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "socket")]
    pub listen: Option<SocketAddr>,
    /// Takes writes, and keeps them in this file (and FILE.map beside it), for this backup alone; goes on with one that is there
    #[arg(long, value_name = "FILE")]
    pub overlay: Option<PathBuf>,
    /// Takes writes, and forgets them in the end; they lie in the folder for temporary files
    #[arg(long, conflicts_with = "overlay")]
    pub writable: bool,
    /// Memory for what was read or will be next
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = parse_bytes)]
    pub cache: u64,
    /// Requests at once, for clients and for reading ahead each
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FETCHES, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub fetches: u16,
}

impl ServeArgs {
    /// Whether clients may write.
    pub const fn is_writable(&self) -> bool {
        self.writable || self.overlay.is_some()
    }
}

#[derive(Debug, Clone, Args)]
pub struct BrowseArgs {
    /// A backup's id, a unique prefix of it, or VOLUME@latest
    pub backup: String,
    /// A folder or file in the guest's filesystem, such as /etc
    pub path: Option<OsString>,
    /// The partition, by the number that is shown without PATH [default: the one that has files, if only one has]
    #[arg(long, value_name = "N", requires = "path")]
    pub partition: Option<u32>,
    /// Lists folders below as well
    #[arg(long, requires = "path", conflicts_with = "extract")]
    pub recursive: bool,
    /// Extracts the file, or the folder with all that is in it, to a new file or folder; a file also to - for standard output
    #[arg(long, value_name = "DEST", requires = "path")]
    pub extract: Option<PathBuf>,
    /// Replaces files that exist, each once it is complete; adds to a folder that exists
    #[arg(long, requires = "extract")]
    pub overwrite: bool,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FETCHES, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub fetches: u16,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only this volume
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// Only those of this group, backed up together: its id, or a prefix of that
    #[arg(long, value_name = "ID")]
    pub group: Option<String>,
    /// Those in the trash instead
    #[arg(long)]
    pub trash: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A backup's id, a unique prefix of it, or VOLUME@latest
    pub backup: String,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The older backup
    pub before: String,
    /// The newer backup
    pub after: String,
}

#[derive(Debug, Args)]
pub struct BackupNames {
    /// Ids of backups, unique prefixes of them, or VOLUME@latest
    #[arg(required = true)]
    pub backups: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum RetentionCommand {
    /// Shows what would be kept, and why
    Plan(RetentionArgs),
    /// Moves what is not kept to the trash
    Run {
        #[command(flatten)]
        policy: RetentionArgs,
        /// Only shows what would be done
        #[arg(long)]
        dry_run: bool,
        /// Removes up to so many backups in one run [default: 100, or a fifth of all if that is more]
        #[arg(long, value_name = "N")]
        max_removals: Option<usize>,
    },
}

/// What retention keeps.
#[derive(Debug, Args)]
pub struct KeepArgs {
    /// Keeps the newest N backups of each volume
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_last: u32,
    /// Keeps the newest backup of each of the last N hours that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_hourly: u32,
    /// … of each of the last N days
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_daily: u32,
    /// … of each of the last N weeks
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_weekly: u32,
    /// … of each of the last N months
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_monthly: u32,
    /// … of each of the last N years
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_yearly: u32,
    /// Keeps all that are younger, such as 48h or 30d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub keep_within: Option<DurationMs>,
    /// Removes no more than N backups of a volume in each DURATION, such as 2/1d, whatever the rules above say: who floods a
    /// volume with new backups can't push out the old ones faster
    #[arg(long, value_name = "N/DURATION", value_parser = parse_rate)]
    pub max_rate: Option<Rate>,
}

#[derive(Debug, Args)]
pub struct RetentionArgs {
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Only this volume
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// Where days begin: a time zone such as Europe/Berlin
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub time_zone: String,
}

#[derive(Debug, Subcommand)]
pub enum GcCommand {
    /// Shows what would be condemned, rewritten and deleted, and what that costs in bytes, requests and dollars
    Plan(GcArgs),
    /// Condemns what no backup needs, rewrites partly dead packs, and deletes what was condemned long enough ago
    Run(GcArgs),
}

#[derive(Debug, Clone, Args)]
pub struct GcArgs {
    /// How long removed backups can be undeleted, and after that how long condemned objects wait [default: the target's]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub grace: Option<DurationMs>,
    /// How long objects that were never committed are left for their session
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = parse_duration)]
    pub orphan_age: DurationMs,
    /// How long an open session or restore counts as being worked on
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = parse_duration)]
    pub session_age: DurationMs,
    /// Rewrites packs of whose bytes less than so many percent are in use; 0 rewrites none
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rewrite_below: u8,
    /// Rewrites packs of at most so many GiB in one run
    #[arg(long, value_name = "GIB", default_value_t = 64)]
    pub rewrite_max_gib: u64,
    /// Stops after this time, between two steps; the next run goes on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub time_limit: Option<DurationMs>,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only these backups
    pub backups: Vec<String>,
    /// Reads so many percent of the packs as well
    #[arg(long, value_name = "PERCENT", conflicts_with = "full", value_parser = parse_percent)]
    pub sample: Option<f64>,
    /// Reads, decrypts and hashes everything
    #[arg(long)]
    pub full: bool,
}

#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// Makes the index (and a lost root) anew from packs and manifests
    Rebuild,
}

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Time between two looks at what is due
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub tick: DurationMs,
    /// Where the console listens, `127.0.0.1` or `[::1]`, which are one to it; port 0 takes a free one [default: 127.0.0.1:0]
    #[arg(long, env = "STRONGROOM_CONSOLE", value_name = "ADDRESS:PORT")]
    pub console: Option<SocketAddr>,
    /// Serves no console
    #[arg(long)]
    pub no_console: bool,
}

#[derive(Debug, Args)]
pub struct RunsArgs {
    /// Only this volume's
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// Only those that have not ended
    #[arg(long)]
    pub open: bool,
    /// So many at the most
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
}

/// How a request is sent.
#[derive(Debug, Clone, Args)]
pub struct Sending {
    /// Waits for the end; exits with 1 if it failed
    #[arg(long)]
    pub wait: bool,
    /// Idempotency key: a request that is sent again under its key is the same request [default: a new one]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// The target, as the fleet calls it [default: the fleet's home]
    #[arg(long, value_name = "NAME")]
    pub of_target: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum RequestCommand {
    /// Back a volume up now
    Backup {
        /// Its name
        volume: String,
        #[command(flatten)]
        sending: Sending,
    },
    /// Restore a backup on a host
    Restore {
        /// A backup's id, a unique prefix of it, or VOLUME@latest
        backup: String,
        /// Where to, on that host, as for `strongroom restore`
        destination: String,
        /// The host that writes it
        #[arg(long, value_name = "NAME")]
        on_host: String,
        /// Only these bytes of the volume: START-END (END excluded) or START+LENGTH
        #[arg(long, value_name = "RANGE", value_parser = parse_range)]
        range: Option<Range<u64>>,
        /// Replaces a file that exists, once the restore is complete
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        sending: Sending,
    },
    /// Move backups to the trash
    Delete {
        /// Ids of backups, unique prefixes of them, or VOLUME@latest
        #[arg(required = true)]
        backups: Vec<String>,
        #[command(flatten)]
        sending: Sending,
    },
    /// Take backups out of the trash
    Undelete {
        /// Ids of backups, or unique prefixes of them
        #[arg(required = true)]
        backups: Vec<String>,
        #[command(flatten)]
        sending: Sending,
    },
    /// Verify that backups can be restored
    Verify {
        /// The host that does it
        #[arg(long, value_name = "NAME")]
        on_host: String,
        /// Reads so many percent of the packs as well
        #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
        sample: u8,
        #[command(flatten)]
        sending: Sending,
    },
    /// Apply the volumes' retention now
    Retention {
        /// Only this volume
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        #[command(flatten)]
        sending: Sending,
    },
    /// Collect garbage now
    Gc {
        /// How long removed backups can be undeleted, and after that how long condemned objects wait [default: the target's]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        grace: Option<DurationMs>,
        #[command(flatten)]
        sending: Sending,
    },
    /// Add a volume, or replace what is to be done with it
    VolumePut {
        /// Its name
        volume: String,
        /// What its host's agent reads: a path that the host's configuration allows
        #[arg(long, value_name = "PATH")]
        source: String,
        /// The host whose agent reads it
        #[arg(long, value_name = "NAME")]
        on_host: String,
        /// Another volume of the host that is snapshotted in the same moment and backed up with it; may be given several times
        #[arg(long, value_name = "NAME=SOURCE", value_parser = parse_member)]
        with: Vec<Member>,
        /// Another chunker than the target's
        #[arg(long, value_name = "CHUNKER")]
        chunker: Option<ChunkerParams>,
        /// Five fields, as in crontab(5); backed up only on request without it
        #[arg(long)]
        cron: Option<String>,
        /// Time zone whose clock the schedule follows, and where retention's days begin, such as Europe/Berlin
        #[arg(long, value_name = "ZONE", default_value = "UTC", requires = "cron")]
        time_zone: String,
        /// Runs begin up to so much later than their slot, each volume always as much
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration, requires = "cron")]
        jitter: DurationMs,
        /// How old its newest backup may become before it counts as late
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        rpo: Option<DurationMs>,
        #[command(flatten)]
        keep: KeepArgs,
        #[command(flatten)]
        sending: Sending,
    },
    /// Forget a volume; its backups stay
    VolumeDelete {
        /// Its name
        volume: String,
        #[command(flatten)]
        sending: Sending,
    },
    /// Change a volume's schedule
    Schedule {
        /// The volume
        volume: String,
        /// Five fields, as in crontab(5)
        #[arg(long)]
        cron: Option<String>,
        /// Time zone whose clock the schedule follows, such as Europe/Berlin
        #[arg(long, value_name = "ZONE")]
        time_zone: Option<String>,
        /// Runs begin up to so much later than their slot, each volume always as much
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        jitter: Option<DurationMs>,
        /// Whether slots pass by unused
        #[arg(long)]
        paused: Option<bool>,
        #[command(flatten)]
        sending: Sending,
    },
    /// Add a host
    HostPut {
        /// Its name
        name: String,
        #[command(flatten)]
        sending: Sending,
    },
    /// Forget a host that has no volumes any more
    HostDelete {
        /// Its name
        name: String,
        #[command(flatten)]
        sending: Sending,
    },
    /// Add a target that was initialised by `strongroom target init`, or change how it is reached
    TargetPut {
        /// What the fleet calls it
        name: String,
        /// s3://bucket/prefix or file:///path
        address: String,
        /// The AWS KMS key that opens its catalog [default: the home's]
        #[arg(long, value_name = "KEY")]
        its_kms_key: Option<String>,
        /// Region of its bucket [default: the home's]
        #[arg(long, value_name = "REGION")]
        its_region: Option<String>,
        #[command(flatten)]
        sending: Sending,
    },
    /// Forget a target that no volume goes to any more; its objects stay
    TargetDelete {
        /// What the fleet calls it
        name: String,
        #[command(flatten)]
        sending: Sending,
    },
    /// Send what a file says (- for standard input): the `request` of docs/messages.md, for what has no command here
    Json {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        sending: Sending,
    },
}

/// A length of time, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationMs(pub u64);

pub fn parse_duration(text: &str) -> Result<DurationMs, String> {
    millis(text).map(DurationMs)
}

/// A number of bytes such as `500kB` or `20MiB`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is no number of bytes; say 500kB, 20MiB or 1048576");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(bad()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(bad)?;
    if bytes == 0 {
        Err(format!("'{text}': nothing would ever get through; leave it out for no limit"))
    } else {
        Ok(bytes)
    }
}

/// A rate such as `2/1d`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let bad = || format!("'{text}' is no rate; say 2/1d for two backups a day");
    let (removals, period) = text.split_once('/').ok_or_else(bad)?;
    let removals = removals.parse().map_err(|_| bad())?;
    let period_ms = NonZeroU64::new(parse_duration(period)?.0).ok_or_else(bad)?;
    Ok(Rate { removals, period_ms })
}

fn parse_member(text: &str) -> Result<Member, String> {
    let parts = text.split_once('=').filter(|(volume, source)| !volume.is_empty() && !source.is_empty());
    let (volume, source) = parts.ok_or_else(|| format!("'{text}' is no NAME=SOURCE"))?;
    Ok(Member { volume: volume.to_owned(), source: source.to_owned() })
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let bad = || format!("'{text}' is no range of bytes; say 0-1048576 or 4096+512");
    let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
    let (start, end) = if let Some((start, end)) = text.split_once('-') {
        (number(start)?, number(end)?)
    } else if let Some((start, len)) = text.split_once('+') {
        let start = number(start)?;
        (start, start.checked_add(number(len)?).ok_or_else(bad)?)
    } else {
        return Err(bad());
    };
    if start > end { Err(bad()) } else { Ok(start..end) }
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let bad = || format!("'{text}' is no percentage; say a number from 0 to 100");
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| bad())?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_and_ranges_read_as_people_write_them() {
        assert_eq!(parse_duration("0s").unwrap(), DurationMs(0));
        assert_eq!(parse_duration("7d").unwrap(), DurationMs(7 * 86_400_000));
        assert_eq!(parse_duration("2w").unwrap(), DurationMs(14 * 86_400_000));
        for bad in ["", "7", "-1h", "1mo", "soon"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_bytes("500kB").unwrap(), 500_000);
        assert_eq!(parse_bytes("20 MiB").unwrap(), 20 << 20);
        assert_eq!(parse_bytes("1048576").unwrap(), 1 << 20);
        for bad in ["", "0", "MiB", "1.5MiB", "-1", "20mib", "18446744073709551615kB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_range("10-20").unwrap(), 10..20);
        assert_eq!(parse_range("10+5").unwrap(), 10..15);
        for bad in ["", "5", "20-10", "a-b", "1+18446744073709551615"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }
}
