// Runs a program that reads what is hostile: it sees the files that it is given and nothing else of the node.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/subprocess.h"

namespace lamina {

struct SystemCall {
  std::string name;
  int zero_argument = -1;  // allowed only where this argument (0 to 5) is 0; -1: however it is called
};

// What is the same for all runs of a program.
struct ConfinementRules {
  std::string program;            // searched in PATH; an ELF program
  std::vector<int> capabilities;  // kept, where we have them; all others are dropped
  // All others fail with EPERM, those of other architectures kill. Empty: no filter, for a program that
  // brings its own.
  std::vector<SystemCall> system_calls;
};

struct ConfinedFile {
  std::string from, to;  // of ours; where the program sees it. Both absolute
  bool writable = false;
};

struct ConfinedRun {
  std::vector<std::string> arguments;  // after the program's name
  std::vector<std::string> env;        // KEY=VALUE; there is nothing else in its environment
  std::vector<ConfinedFile> files;     // files and directories; without set-id bits, devices, programs
  uint64_t memory_bytes = 0;           // address space; 0: no limit
  uint64_t file_bytes = 0;             // of each file that it writes; 0: no limit
  std::chrono::seconds cpu_time{0};    // 0: no limit
  std::chrono::milliseconds wall_time = std::chrono::minutes(10);
};

// Immutable, thread-safe.
//
// The program has mount, pid, IPC, UTS and network namespaces of its own. Its root is an empty, read-only
// tmpfs with itself, the libraries that it loads and the run's files, each mounted on its own (what is
// mounted below one of them is not there). It is the namespace's first process: nothing of it is left when a
// run returns, and it dies with the thread that runs it, first of all when memory is short, and without a
// core.
class Confinement {
 public:
  // Tries how much of that can be had here, running the program with --version. NotFound without the program;
  // other errors where not even capabilities and system calls can be taken from it.
  static absl::StatusOr<Confinement> Prepare(ConfinementRules rules);
  ~Confinement();
  Confinement(Confinement&&) noexcept;

  // OK, or FailedPrecondition with what is missing here, and why: the program is then run with all of it that
  // can be had. Capabilities, system calls and limits always can; in place of a root of its own Landlock
  // refuses to open other files, where the kernel has it.
  const absl::Status& shortfall() const { return shortfall_; }
  // Where the program finds the file: `to`, or without a root of its own, `from`.
  const std::string& PathOf(const ConfinedFile& file) const;

  // As RunCommand. The output is the program's: CheckExit makes a sentence of it.
  absl::StatusOr<CommandResult> Run(const ConfinedRun& run, const std::stop_token& stop = {}) const;

 private:
  enum class Reach { kWhole, kNoRoot, kNoNamespaces };
  struct Program;  // what the child needs of the rules
  explicit Confinement(std::unique_ptr<Program> program);
  absl::Status Try(Reach reach) const;
  absl::StatusOr<CommandResult> RunWith(Reach reach, const ConfinedRun& run,
                                        const std::stop_token& stop) const;

  std::unique_ptr<Program> program_;
  Reach reach_ = Reach::kWhole;
  absl::Status shortfall_;
};

}  // namespace lamina
