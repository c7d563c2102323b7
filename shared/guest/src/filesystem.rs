//! Files and folders of whatever filesystem it is.

use std::collections::VecDeque;

use crate::error::{GuestError, GuestResult};
use crate::ext::Ext;
use crate::fat::{self, Fat};
use crate::probe::Content;
use crate::window::Window;

/// Symbolic links that are followed on the way to one file, as by Linux.
const MAX_LINKS: u32 = 40;
/// Names that a path may have on the way, with those of links.
const MAX_NAMES: usize = 4096;
/// The longest target of a symbolic link, bytes, as Linux has it.
pub const MAX_TARGET_BYTES: u64 = 4096;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
}

impl Kind {
    /// Its name, as stat(1) has it but in one word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Link => "symlink",
            Self::CharacterDevice => "character-device",
            Self::BlockDevice => "block-device",
            Self::Pipe => "pipe",
            Self::Socket => "socket",
        }
    }

    /// Its letter in the first column of `ls -l`.
    pub const fn letter(self) -> char {
        match self {
            Self::File => '-',
            Self::Folder => 'd',
            Self::Link => 'l',
            Self::CharacterDevice => 'c',
            Self::BlockDevice => 'b',
            Self::Pipe => 'p',
            Self::Socket => 's',
        }
    }
}

/// What is known of a file or folder beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with those for setuid, setgid and sticky: `mode & 0o7777`.
    pub mode: u16,
    /// Length of the content, bytes.
    pub size_bytes: u64,
    /// When the content was last modified: seconds since 1970 (UTC) and nanoseconds. FAT has local times, taken as
    /// UTC, and may have none.
    pub modified: Option<(i64, u32)>,
    /// Id of the user it belongs to; 0 on FAT.
    pub uid: u32,
    /// Id of the group it belongs to; 0 on FAT.
    pub gid: u32,
}

/// A file or folder.
#[derive(Debug, Clone)]
pub struct Node(Place);

#[derive(Debug, Clone)]
enum Place {
    Inode(u32),
    Fat(fat::Place),
}

impl Node {
    /// Its number in its filesystem. Each folder has one of its own, that is no other folder's; empty files of FAT
    /// share one.
    pub fn id(&self) -> u64 {
        match &self.0 {
            Place::Inode(number) => (*number).into(),
            Place::Fat(place) => place.cluster().into(),
        }
    }
}

/// A name in a folder.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name: any bytes, not checked.
    pub name: Vec<u8>,
    /// What it stands for.
    pub node: Node,
}

impl Entry {
    /// Whether the name is one that may stand in a folder, and stays in it.
    pub fn has_safe_name(&self) -> bool {
        !matches!(self.name.as_slice(), b"" | b"." | b"..")
            && !self.name.iter().any(|byte| matches!(byte, b'/' | 0))
    }
}

/// A piece of a file's content; pieces follow each other without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// So many zero bytes that are stored nowhere.
    Hole(u64),
}

/// A filesystem, open for reading.
#[derive(Debug)]
pub enum Filesystem {
    /// ext2, ext3 or ext4.
    Ext(Box<Ext>),
    /// FAT12, FAT16 or FAT32.
    Fat(Fat),
}

impl Filesystem {
    /// Opens what [`crate::probe::probe`] found.
    ///
    /// # Errors
    /// `Unsupported` for what is not read here; `Damaged`; `Read`.
    pub fn open(window: Window, content: &Content) -> GuestResult<Self> {
        match content.name {
            "ext2" | "ext3" | "ext4" => Ok(Self::Ext(Box::new(Ext::open(window)?))),
            "fat12" | "fat16" | "fat32" => Ok(Self::Fat(Fat::open(window)?)),
            other => Err(GuestError::Unsupported(format!("holds {other}, which is not read here"))),
        }
    }

    /// The folder that holds everything.
    pub fn root(&self) -> Node {
        Node(match self {
            Self::Ext(_) => Place::Inode(Ext::ROOT),
            Self::Fat(fat) => Place::Fat(fat.root()),
        })
    }

    /// What is known of a file or folder.
    ///
    /// # Errors
    /// `Damaged`, `Read`.
    pub fn metadata(&self, node: &Node) -> GuestResult<Metadata> {
        match (self, &node.0) {
            (Self::Ext(ext), Place::Inode(number)) => ext.inode(*number)?.metadata(*number),
            (Self::Fat(_), Place::Fat(place)) => Ok(place.metadata()),
            _ => Err(foreign()),
        }
    }

    /// Tells the entries of a folder in the order they are stored, but for `.` and `..`, until `each` answers false.
    ///
    /// # Errors
    /// `Invalid` for what is no folder; `Unsupported` for one whose names the guest encrypted; `Damaged`; `Read`;
    /// whatever `each` answers.
    pub fn list<E: From<GuestError>>(
        &self,
        folder: &Node,
        mut each: impl FnMut(Entry) -> Result<bool, E>,
    ) -> Result<(), E> {
        let is_dot = |name: &[u8]| matches!(name, b"." | b"..");
        match (self, &folder.0) {
            (Self::Ext(ext), Place::Inode(number)) => ext.list(*number, &mut |name, inode| {
                if is_dot(name) {
                    return Ok(true);
                }
                each(Entry { name: name.to_vec(), node: Node(Place::Inode(inode)) })
            }),
            (Self::Fat(fat), Place::Fat(place)) => fat.list(place, &mut |name, place| {
                if is_dot(&name) {
                    return Ok(true);
                }
                each(Entry { name, node: Node(Place::Fat(place)) })
            }),
            _ => Err(foreign().into()),
        }
    }

    /// Where a symbolic link leads to.
    ///
    /// # Errors
    /// `Invalid` for what is no link; `Unsupported` for one that the guest encrypted; `Damaged`; `Read`.
    pub fn target(&self, link: &Node) -> GuestResult<Vec<u8>> {
        match (self, &link.0) {
            (Self::Ext(ext), Place::Inode(number)) => ext.target(*number),
            _ => Err(GuestError::Invalid("not a symbolic link".into())),
        }
    }

    /// Reads a file's content, piece by piece.
    ///
    /// # Errors
    /// `Invalid` for what is no regular file; `Unsupported` for one that the guest encrypted or compressed;
    /// `Damaged`; `Read`; whatever `each` answers.
    pub fn read<E: From<GuestError>>(
        &self,
        file: &Node,
        mut each: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match (self, &file.0) {
            (Self::Ext(ext), Place::Inode(number)) => ext.read_file(*number, &mut each),
            (Self::Fat(fat), Place::Fat(place)) => fat.read_file(place, &mut each),
            _ => Err(foreign().into()),
        }
    }

    /// Finds what a path leads to, from the root whether it begins with a slash or not. Symbolic links on the way are
    /// followed within the filesystem; the last name only if `follow`, or if a slash is behind it. Answers the path
    /// without links too.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a path through what is no folder, or through too many links; `Unsupported`,
    /// `Damaged`, `Read`.
    pub fn find(&self, path: &[u8], follow: bool) -> GuestResult<(Vec<u8>, Node)> {
        let names = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
        };
        let follow = follow || path.ends_with(b"/");
        let mut ahead = VecDeque::from(names(path));
        let mut behind: Vec<(Vec<u8>, Node)> = Vec::new();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    behind.pop();
                    continue;
                }
                _ => {}
            }
            let folder = behind.last().map_or_else(|| self.root(), |(_, node)| node.clone());
            if self.metadata(&folder)?.kind != Kind::Folder {
                return Err(GuestError::Invalid(format!("{} is not a folder", shown(&joined(&behind)))));
            }
            let Some(node) = self.lookup(&folder, &name)? else {
                behind.push((name, folder));
                return Err(GuestError::NotFound(format!("there is no {}", shown(&joined(&behind)))));
            };
            let is_link = self.metadata(&node)?.kind == Kind::Link;
            if is_link && (follow || !ahead.is_empty()) {
                links += 1;
                let target = self.target(&node)?;
                if target.starts_with(b"/") {
                    behind.clear();
                }
                for name in names(&target).into_iter().rev() {
                    ahead.push_front(name);
                }
            } else {
                behind.push((name, node));
            }
            if links > MAX_LINKS || behind.len() + ahead.len() > MAX_NAMES {
                return Err(GuestError::Invalid(format!(
                    "{} leads through too many symbolic links or folders",
                    shown(path)
                )));
            }
        }
        let node = behind.last().map_or_else(|| self.root(), |(_, node)| node.clone());
        Ok((joined(&behind), node))
    }

    fn lookup(&self, folder: &Node, name: &[u8]) -> GuestResult<Option<Node>> {
        let mut found = None;
        let ignores_case = matches!(self, Self::Fat(_));
        self.list(folder, |entry| {
            let same = entry.name == name;
            if same || (ignores_case && found.is_none() && entry.name.eq_ignore_ascii_case(name)) {
                found = Some(entry.node);
            }
            Ok::<_, GuestError>(!same)
        })?;
        Ok(found)
    }
}

fn joined(names: &[(Vec<u8>, Node)]) -> Vec<u8> {
    if names.is_empty() {
        return b"/".to_vec();
    }
    names.iter().flat_map(|(name, _)| [b"/", name.as_slice()].concat()).collect()
}

fn foreign() -> GuestError {
    GuestError::Invalid("a file of another filesystem".into())
}

/// A name or path as it can be shown: on one line, and without what a terminal obeys.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || character == '\\' || is_invisible(character) {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Marks that turn the direction of text, or have no width: names that differ would look alike.
const fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}
