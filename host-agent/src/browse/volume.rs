//! The partitions of a backup, and which of them is meant.

use std::sync::Arc;

use strongroom_guest::probe::{Content, probe};
use strongroom_guest::table::{self, Partition, Scheme};
use strongroom_guest::{Filesystem, GuestResult, Source, Window};
use strongroom_vault::{VaultError, VaultResult};

use super::told_of;

/// A backup's volume, with what each partition holds.
#[derive(Debug)]
pub struct Volume {
    window: Window,
    backup: String,
    pub scheme: Scheme,
    pub partitions: Vec<(Partition, Content)>,
}

impl Volume {
    /// Reads the partition table, and some bytes of each partition.
    pub fn open(source: Arc<impl Source + 'static>, backup: &str) -> GuestResult<Self> {
        let window = Window::new(source);
        let table = table::read(&window)?;
        let mut partitions = Vec::with_capacity(table.partitions.len());
        for partition in table.partitions {
            let content = probe(&window.part(partition.start, partition.size_bytes))?;
            partitions.push((partition, content));
        }
        Ok(Self { window, backup: backup.to_owned(), scheme: table.scheme, partitions })
    }

    /// Opens the filesystem of a partition: of the only one that has one, if none is named. Answers its number too.
    pub fn filesystem(&self, wanted: Option<u32>) -> VaultResult<(Filesystem, u32)> {
        let readable = || self.partitions.iter().filter(|(_, content)| content.is_readable());
        let (partition, content) = match wanted {
            Some(number) => self
                .partitions
                .iter()
                .find(|(partition, _)| partition.number == number)
                .ok_or_else(|| self.invalid(&format!("there is no partition {number}")))?,
            None if readable().count() > 1 => {
                return Err(self.invalid("more than one partition has files; say --partition N"));
            }
            None => readable().next().ok_or_else(|| {
                self.invalid(&format!("no partition has files that can be read; {}", self.hint()))
            })?,
        };
        let number = partition.number;
        if !content.is_readable() {
            let holds = format!("partition {number} holds {}, which is not read here", content.name);
            return Err(self.invalid(&format!("{holds}; {}", self.hint())));
        }
        let window = self.window.part(partition.start, partition.size_bytes);
        let filesystem = Filesystem::open(window, content)
            .map_err(|error| told_of(&format!("partition {number} ({})", content.name), error))?;
        Ok((filesystem, number))
    }

    /// How else to get at files.
    fn hint(&self) -> String {
        format!(
            "to get at its files, `strongroom serve {}` exports it for guestmount, or for nbd-client and mount \
             (docs/operations.md)",
            self.backup
        )
    }

    fn invalid(&self, what: &str) -> VaultError {
        let partitions: Vec<String> = self
            .partitions
            .iter()
            .map(|(partition, content)| format!("{}: {}", partition.number, content.name))
            .collect();
        VaultError::Invalid(format!("{}: {what} (partitions: {})", self.backup, partitions.join(", ")))
    }
}
