// Commands run in a live container: answers, codes, streams, terminals, bounds.
#include <thread>

#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

class ExecTest : public SharedPodTest {};

TEST_F(ExecTest, SyncGivesBothStreamsAndTheExitCode) {
  ASSERT_OK_AND_ASSIGN(const ExecResult result,
                       Cri().ExecSync(container(), {"sh", "-c", "echo out; echo err >&2; exit 42"}));
  EXPECT_EQ(result.out, "out\n");
  EXPECT_EQ(result.err, "err\n");
  EXPECT_EQ(result.exit_code, 42);
}

TEST_F(ExecTest, ASignalsDeathIs128PlusItsNumber) {
  ASSERT_OK_AND_ASSIGN(const ExecResult result, Cri().ExecSync(container(), {"sh", "-c", "kill -9 $$"}));
  EXPECT_EQ(result.exit_code, 137);
}

TEST_F(ExecTest, ArgumentsArriveAsTheyWere) {
  ASSERT_OK_AND_ASSIGN(const ExecResult result,
                       Cri().ExecSync(container(), {"printf", "<%s>", "", "a b", "new\nline", "ü\"'$\\"}));
  EXPECT_EQ(result.out, "<><a b><new\nline><ü\"'$\\>");
}

TEST_F(ExecTest, AMissingProgramIsAnErrorAndHarmsNothing) {
  const auto result = Cri().ExecSync(container(), {"/no/such/program"});
  ASSERT_NOT_OK(result);
  EXPECT_THAT(Message(result.status()), ::testing::ContainsRegex("/no/such/program.*[Nn]o such file"));
  EXPECT_EQ(Shell("echo still here"), "still here\n");
}

TEST_F(ExecTest, AnExecThatTakesTooLongIsKilled) {
  const auto started = std::chrono::steady_clock::now();
  const auto result = Cri().ExecSync(container(), {"sleep", "4242"}, 1);
  EXPECT_THAT(result, testing::HasStatus(absl::StatusCode::kDeadlineExceeded));
  EXPECT_LT(std::chrono::steady_clock::now() - started, seconds(12));
  EXPECT_OK(Eventually(In(seconds(5)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string left, ShellIn(container(), "ps | grep '[s]leep 4242' || true"));
    return left.empty() ? absl::OkStatus() : absl::InternalError(left);
  }));
}

TEST_F(ExecTest, LargeOutputArrivesWhole) {
  ASSERT_OK_AND_ASSIGN(const ExecResult result,
                       Cri().ExecSync(container(), {"sh", "-c", "seq 1 300000"}, 60));
  std::string expected;
  for (int i = 1; i <= 300000; ++i) expected += std::to_string(i) + "\n";
  EXPECT_EQ(result.out.size(), expected.size());
  EXPECT_TRUE(result.out == expected);
}

TEST_F(ExecTest, ManyAtOnceKeepTheirOwnStreams) {
  std::vector<std::thread> threads;
  std::vector<absl::StatusOr<ExecResult>> results(8,
                                                  absl::StatusOr<ExecResult>(absl::UnknownError("not run")));
  for (size_t i = 0; i < results.size(); ++i) {
    threads.emplace_back([&results, i] {
      results[i] =
          Cri().ExecSync(container(), {"sh", "-c", fmt::format("seq {0}000 {0}999; exit {0}", i + 1)});
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < results.size(); ++i) {
    ASSERT_OK(results[i].status());
    EXPECT_EQ(results[i]->exit_code, static_cast<int>(i) + 1);
    EXPECT_EQ(SplitLines(results[i]->out).size(), 1000U);
    EXPECT_EQ(SplitLines(results[i]->out).front(), std::to_string(i + 1) + "000");
  }
}

TEST_F(ExecTest, StandardInputReachesTheProcess) {
  ASSERT_OK_AND_ASSIGN(const auto stream,
                       Cri().Exec(container(), {"sh", "-c", "read a; read b; echo $b-$a; exit 3"},
                                  /*tty=*/false, /*std_in=*/true));
  ASSERT_OK(stream->Write("first\n", In(seconds(5))));
  ASSERT_OK(stream->Write("second\n", In(seconds(5))));
  ASSERT_OK_AND_ASSIGN(const ExecResult result, stream->Finish(In(seconds(20))));
  EXPECT_EQ(result.out, "second-first\n");
  EXPECT_EQ(result.exit_code, 3);
}

TEST_F(ExecTest, MuchInputIsCarriedUnchanged) {
  std::string data;
  for (int i = 0; data.size() < 1'000'000; ++i) data += std::to_string(i * 2654435761U) + "\n";
  ASSERT_OK_AND_ASSIGN(
      const auto stream,
      Cri().Exec(container(), {"sh", "-c", fmt::format("head -c {} | sha256sum", data.size())},
                 /*tty=*/false, /*std_in=*/true));
  ASSERT_OK(stream->Write(data, In(seconds(30))));
  ASSERT_OK_AND_ASSIGN(const ExecResult result, stream->Finish(In(seconds(30))));
  EXPECT_EQ(result.out, Sha256(data) + "  -\n");
}

TEST_F(ExecTest, InputsEndIsSeen) {
  // The websocket protocol can't close one direction; dropping the session closes the process' input.
  ASSERT_OK_AND_ASSIGN(auto stream,
                       Cri().Exec(container(), {"sh", "-c", "cat >/tmp/input; echo end >>/tmp/input"},
                                  /*tty=*/false, /*std_in=*/true));
  ASSERT_OK(stream->Write("some ", In(seconds(5))));
  ASSERT_OK(
      Eventually(In(seconds(10)), [&] { return ShellIn(container(), "grep -q some /tmp/input").status(); }));
  stream.reset();
  EXPECT_OK(Eventually(In(seconds(15)),
                       [&] { return ShellIn(container(), "grep -q 'some end' /tmp/input").status(); }));
}

TEST_F(ExecTest, ATerminalHasItsSizeAndFollowsIt) {
  ASSERT_OK_AND_ASSIGN(const auto stream, Cri().Exec(container(), {"sh"}, /*tty=*/true, /*std_in=*/true));
  ASSERT_OK(stream->Resize(101, 37, In(seconds(5))));
  ASSERT_OK(stream->Write("tty; echo is-a-$((40+2))\n", In(seconds(5))));
  ASSERT_OK(stream->ReadUntil("is-a-42", In(seconds(20))));
  EXPECT_THAT(stream->out(), HasSubstr("/dev/pts/"));
  ASSERT_OK(Eventually(In(seconds(10)), [&]() -> absl::Status {
    RETURN_IF_ERROR(stream->Write("stty size\n", In(seconds(5))));
    return stream->ReadUntil("37 101", In(std::chrono::milliseconds(500)));
  }));
  ASSERT_OK(stream->Resize(200, 50, In(seconds(5))));
  ASSERT_OK(Eventually(In(seconds(10)), [&]() -> absl::Status {
    RETURN_IF_ERROR(stream->Write("stty size\n", In(seconds(5))));
    return stream->ReadUntil("50 200", In(std::chrono::milliseconds(500)));
  }));
  ASSERT_OK(stream->Write("exit 9\n", In(seconds(5))));
  ASSERT_OK_AND_ASSIGN(const ExecResult result, stream->Finish(In(seconds(20))));
  EXPECT_EQ(result.exit_code, 9);
}

TEST_F(ExecTest, ControlCInterruptsATerminalsProgram) {
  ASSERT_OK_AND_ASSIGN(const auto stream, Cri().Exec(container(),
                                                     {"sh", "-c",
                                                      "trap 'echo caught; exit 5' INT; echo armed; "
                                                      "while :; do sleep 1; done"},
                                                     /*tty=*/true, /*std_in=*/true));
  ASSERT_OK(stream->ReadUntil("armed", In(seconds(20))));
  ASSERT_OK(stream->Write("\x03", In(seconds(5))));
  ASSERT_OK_AND_ASSIGN(const ExecResult result, stream->Finish(In(seconds(20))));
  EXPECT_THAT(result.out, HasSubstr("caught"));
  EXPECT_EQ(result.exit_code, 5);
}

TEST_F(ExecTest, ClosingInputEndsAReader) {
  // ctr closes the exec's input when its own ends, if the exec is known by then: hence the wait for "ready".
  const std::string output = TestNode().volumes_dir() + "/output";
  const std::string command = fmt::format(
      "(timeout 20 sh -c 'until grep -q ready {2}; do sleep 0.05; done'; seq 1 1000) | timeout 40 ctr "
      "--address {0} "
      "--namespace k8s.io task exec --exec-id closer {1} sh -c 'echo ready; cat | wc -l; echo done' >{2} "
      "2>&1",
      TestNode().containerd_socket(), container(), output);
  EXPECT_EQ(system(command.c_str()), 0);
  EXPECT_EQ(ReadText(output), "ready\n1000\ndone\n");
}

TEST_F(ExecTest, AttachSeesAndFeedsTheMainProcess) {
  ContainerSpec spec = ShellContainer("attached", "while read line; do echo got:$line; done; echo bye");
  spec.std_in = spec.stdin_once = true;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod(), spec));
  ASSERT_OK_AND_ASSIGN(auto stream, Cri().Attach(id, /*tty=*/false, /*std_in=*/true));
  ASSERT_OK(stream->Write("hello\n", In(seconds(5))));
  ASSERT_OK(stream->ReadUntil("got:hello", In(seconds(20))));
  stream.reset();  // stdin_once: the first session's end closes the input
  ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().WaitForExit(id, In(seconds(20))));
  EXPECT_EQ(info.exit_code, 0);
  EXPECT_OK(Eventually(In(seconds(5)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string log, Cri().LogText(id));
    return log == "got:hello\nbye\n" ? absl::OkStatus() : absl::InternalError(log);
  }));
  EXPECT_OK(Cri().RemoveContainer(id));
}

}  // namespace
}  // namespace lamina::e2e
